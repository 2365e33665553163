{{- define "secret" -}}
{{ .Values.secret | default (printf "%s-tls" .Release.Name) }}
{{- end }}

{{- define "configuration" -}}
listen: [":8443"]
plain_listen: [":8080"]
# By default one for each CPU, and that would be each of the node.
workers: {{ .Values.workers }}
state_dir: /state/botproxy
certificates:
  - { chain: /certificates/tls.crt, key: /certificates/tls.key }
upstreams:
  bot: { url: "http://{{ ternary "127.0.0.1" .Values.bot.service (ne .Values.bot.image "") }}:{{ .Values.bot.port }}", hold: {{ .Values.bot.hold }} }
routes:
  - hosts: {{ toJson .Values.hosts }}
timeouts:
  drain: {{ .Values.drainSeconds }}s
{{- with .Values.configuration }}
{{ toYaml . }}
{{- end }}
{{- end }}
