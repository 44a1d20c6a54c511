{{- /* What the operator is told, and what it may do. */ -}}
{{- define "forkcast.operatorConfig" -}}
{{- $tls := include "forkcast.tls" . }}
{{- $tokens := include "forkcast.tokens" . }}
monitor:
  target: {{ include "forkcast.host" (dict "root" . "component" "monitor") }}:50051
  insecureDev: {{ not $tls }}
  {{- if $tls }}
  tls: /etc/forkcast/tls
  {{- end }}
  {{- if $tokens }}
  tokenFile: /var/run/secrets/forkcast/monitor/token
  {{- end }}
{{- if .Values.proxy.enabled }}
proxy:
  target: {{ include "forkcast.host" (dict "root" . "component" "proxy") }}:50051
  insecureDev: {{ not $tls }}
  {{- if $tls }}
  tls: /etc/forkcast/tls
  {{- end }}
  {{- if $tokens }}
  tokenFile: /var/run/secrets/forkcast/proxy/token
  {{- end }}
{{- end }}
trainer:
  image: {{ include "forkcast.image" (dict "root" . "image" .Values.trainer.image) }}
  pullPolicy: {{ .Values.trainer.image.pullPolicy }}
  pullSecrets: {{ toJson .Values.trainer.pullSecrets }}
  rolloutPriorityClassName: {{ include "forkcast.rolloutPriorityClass" . | quote }}
  monitorTlsSecret: {{ .Values.trainer.monitorTlsSecret | quote }}
  tokenAudience: forkcast-monitor
  monitorCaConfigMap: {{ .Values.trainer.monitorCaConfigMap | quote }}
  runAsUser: {{ toJson .Values.trainer.podSecurity.runAsUser }}
  runAsGroup: {{ toJson .Values.trainer.podSecurity.runAsGroup }}
  fsGroup: {{ toJson .Values.trainer.podSecurity.fsGroup }}
managedBy: {{ .Values.managedBy | quote }}
stores:
{{- range $number, $store := include "forkcast.stores" . | fromJsonArray }}
  - endpoint: {{ $store.endpoint }}
    bucket: {{ $store.bucket }}
    prefix: {{ $store.prefix | default "" | quote }}
    region: {{ $store.region }}
    credentialsDir: /etc/forkcast/stores/{{ $number }}
    {{- if $store.caConfigMap }}
    caFile: /etc/forkcast/store-ca/{{ $number }}/ca.crt
    {{- end }}
    runSecretName: {{ $store.runSecretName }}
    conditionalWrites: {{ $store.conditionalWrites | quote }}
{{- end }}
{{- if $tokens }}
reservedAccounts: {{ include "forkcast.accounts" . }}
{{- end }}
{{- end }}

{{- /* Accounts of the release as a JSON list of NAMESPACE/NAME: no run's pod may have one. */ -}}
{{- define "forkcast.accounts" -}}
{{- $accounts := list -}}
{{- range $component := list "operator" "monitor" "proxy" -}}
{{- $accounts = append $accounts (printf "%s/%s" $.Release.Namespace (include "forkcast.serviceAccount" (dict "root" $ "component" $component))) -}}
{{- end -}}
{{- $accounts = append $accounts (printf "%s/%s-uninstall" .Release.Namespace (include "forkcast.fullname" .)) -}}
{{- toJson ($accounts | uniq) -}}
{{- end }}

{{- define "forkcast.operatorRules" -}}
# Secrets are absent on purpose: pods mount them by name, the operator never reads one.
- apiGroups: [forkcast.dev]
  resources: [trainingruns]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [forkcast.dev]
  resources: [branches]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [forkcast.dev]
  resources: [trainingruns/status, branches/status]
  verbs: [get, patch]
- apiGroups: [forkcast.dev]  # owner references that block deletion
  resources: [trainingruns/finalizers, branches/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [jobset.x-k8s.io]
  resources: [jobsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end }}
