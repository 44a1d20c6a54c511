{{- /* The one right of a server that is shown tokens: to ask whose they are. It is cluster-wide by
nature, and shows nothing but what the caller has shown itself. */ -}}
{{- define "forkcast.reviewer" -}}
{{- if and .root.Values.rbac.create (include "forkcast.tokens" .root) }}
{{- $name := printf "%s-%s-tokens" (include "forkcast.clusterName" .root) .component }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels:
    {{- include "forkcast.labels" . | nindent 4 }}
rules:
  - apiGroups: [authentication.k8s.io]
    resources: [tokenreviews]
    verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels:
    {{- include "forkcast.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ include "forkcast.serviceAccount" . }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}
{{- end }}
