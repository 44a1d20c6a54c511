{{- define "forkcast.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "forkcast.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "forkcast.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Beginning of the names of objects that belong to no namespace: two releases never share one. */ -}}
{{- define "forkcast.clusterName" -}}
{{ .Release.Namespace }}-{{ include "forkcast.fullname" . }}
{{- end }}

{{- /* Labels of an object. Call: (dict "root" $ "component" "monitor"). */ -}}
{{- define "forkcast.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{ include "forkcast.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: forkcast
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "forkcast.selector" -}}
app.kubernetes.io/name: {{ include "forkcast.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* Name of an image. Call: (dict "root" $ "image" .Values.image). */ -}}
{{- define "forkcast.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "forkcast.serviceAccount" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{ $account.name | default (printf "%s-%s" (include "forkcast.fullname" .root) .component) }}
{{- else -}}
{{ $account.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "forkcast.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "forkcast.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Where a component's pods may run. Call with its values. */ -}}
{{- define "forkcast.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- /* Metadata of a component's pods. Call: (dict "root" $ "component" "x" "values" ... "sums" (list)). */ -}}
{{- define "forkcast.podMetadata" -}}
labels:
  {{- include "forkcast.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or .values.podAnnotations .checksum }}
annotations:
  {{- with .checksum }}
  checksum/config: {{ . }}
  {{- end }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "forkcast.env" -}}
- name: OMP_NUM_THREADS
  value: "1"
- name: OPENBLAS_NUM_THREADS
  value: "1"
- name: PYTHONUNBUFFERED
  value: "1"
{{- with .extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "forkcast.tls" -}}
{{- if ne .Values.tls.mode "Disabled" }}true{{ end -}}
{{- end }}

{{- define "forkcast.tokens" -}}
{{- if and (include "forkcast.tls" .) (eq .Values.tls.auth "Token") }}true{{ end -}}
{{- end }}

{{- define "forkcast.mutual" -}}
{{- if and (include "forkcast.tls" .) (eq .Values.tls.auth "Mutual") }}true{{ end -}}
{{- end }}

{{- define "forkcast.tlsSecret" -}}
{{- if eq .Values.tls.mode "Existing" -}}
{{ required "tls.existingSecret: is needed with tls.mode Existing; name the Secret" .Values.tls.existingSecret }}
{{- else -}}
{{ include "forkcast.fullname" . }}-tls
{{- end -}}
{{- end }}

{{- define "forkcast.clientSecret" -}}
{{- if eq .Values.tls.mode "Existing" -}}
{{ required "tls.existingClientSecret: is needed with tls.mode Existing and tls.auth Mutual; name the Secret" .Values.tls.existingClientSecret }}
{{- else -}}
{{ include "forkcast.fullname" . }}-operator-tls
{{- end -}}
{{- end }}

{{- /* Who may do everything, as the servers' --operator names it. */ -}}
{{- define "forkcast.operatorIdentity" -}}
{{ .Release.Namespace }}/{{ include "forkcast.serviceAccount" (dict "root" . "component" "operator") }}
{{- end }}

{{- /* Host of a component's Service, complete, since pods of other namespaces use it. */ -}}
{{- define "forkcast.host" -}}
{{ include "forkcast.fullname" .root }}-{{ .component }}.{{ .root.Release.Namespace }}.svc
{{- end }}

{{- /* Arguments that monitor and proxy share. */ -}}
{{- define "forkcast.serving" -}}
- --listen=0.0.0.0:50051
- --health-port=50052
- --metrics-port=9090
{{- if include "forkcast.tls" . }}
- --tls=/etc/forkcast/tls
- --auth={{ ternary "token" "mtls" (eq .Values.tls.auth "Token") }}
- --operator={{ include "forkcast.operatorIdentity" . }}
{{- else }}
- --insecure-dev
{{- end }}
{{- end }}

{{- define "forkcast.servingPorts" -}}
- {name: grpc, containerPort: 50051}
- {name: health, containerPort: 50052}
- {name: metrics, containerPort: 9090}
{{- end }}

{{- define "forkcast.grpcProbes" -}}
startupProbe:
  grpc: {port: 50052}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  grpc: {port: 50052}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  grpc: {port: 50052}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{- define "forkcast.rolloutPriorityClass" -}}
{{- $class := .Values.trainer.rolloutPriorityClass -}}
{{- if $class.create -}}
{{ $class.name | default (printf "%s-rollout" (include "forkcast.clusterName" .)) }}
{{- else -}}
{{ $class.name }}
{{- end -}}
{{- end }}

{{- /* The stores as a JSON list: what operator.yaml says and which objects are mounted for it. */ -}}
{{- define "forkcast.stores" -}}
{{- $stores := list -}}
{{- if eq .Values.objectStore.mode "Bundled" -}}
{{- $name := printf "%s-store" (include "forkcast.fullname" .) -}}
{{- $endpoint := printf "http://%s:7070" (include "forkcast.host" (dict "root" . "component" "store")) -}}
{{- $stores = append $stores (dict "endpoint" $endpoint "bucket" .Values.objectStore.bundled.bucket "region" "us-east-1" "secretName" $name "accessKeyIdKey" "accessKeyId" "secretAccessKeyKey" "secretAccessKey" "runSecretName" $name "caConfigMap" "" "caKey" "" "conditionalWrites" "Auto") -}}
{{- else -}}
{{- $given := .Values.objectStore.external -}}
{{- $_ := required "objectStore.external.endpoint: is needed; give the URL of an S3 API, or set objectStore.mode=Bundled for a development store" $given.endpoint -}}
{{- $_ := required "objectStore.external.bucket: is needed; name a bucket that exists" $given.bucket -}}
{{- $stores = append $stores $given -}}
{{- end -}}
{{- range .Values.objectStore.additional -}}
{{- $stores = append $stores (mergeOverwrite (deepCopy $.Values.objectStore.external) .) -}}
{{- end -}}
{{- toJson $stores -}}
{{- end }}
