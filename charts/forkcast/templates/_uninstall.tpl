{{- /* Rights of the hook that runs before the release goes. */ -}}
{{- define "forkcast.uninstallRules" -}}
- apiGroups: [forkcast.dev]
  resources: [trainingruns]
  verbs: [list, patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, delete]
- apiGroups: [jobset.x-k8s.io]
  resources: [jobsets]
  verbs: [list, delete]
{{- end }}

{{- define "forkcast.uninstallHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
