{{- define "forkcast.dnsEgress" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- end }}
{{- define "forkcast.apiEgress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- define "forkcast.metricsIngress" -}}
- ports: [{port: 9090, protocol: TCP}]
  {{- with .Values.networkPolicy.metricsFrom }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- define "forkcast.operatorPeer" -}}
- podSelector:
    matchLabels:
      {{- include "forkcast.selector" (dict "root" . "component" "operator") | nindent 6 }}
{{- end }}
{{- /* Pods of runs, wherever they are looked after. */ -}}
{{- define "forkcast.runPeers" -}}
- podSelector:
    matchExpressions:
      - {key: forkcast.dev/run, operator: Exists}
  {{- if .Values.watchNamespaces }}
  namespaceSelector:
    matchExpressions:
      - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson .Values.watchNamespaces }}}
  {{- else }}
  namespaceSelector: {}
  {{- end }}
{{- end }}
