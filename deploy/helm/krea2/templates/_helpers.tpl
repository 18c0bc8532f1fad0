{{- define "krea2.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "krea2.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "krea2.labels" -}}
{{ include "krea2.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "krea2.secret" -}}
{{ .Values.auth.existingSecret | default (include "krea2.name" .) }}
{{- end }}

{{- /* GPUs of a pod. */ -}}
{{- define "krea2.gpus" -}}
{{ mul .Values.parallel.tp .Values.parallel.sp (ternary 2 1 .Values.parallel.cfgParallel) }}
{{- end }}

{{- /* Seconds between being told to stop and being killed: the server takes up to 10 after the drain, and 5 are spare. */ -}}
{{- define "krea2.graceSeconds" -}}
{{ add .Values.server.preStopSeconds .Values.server.drainSeconds 15 }}
{{- end }}

{{- define "krea2.hasKeys" -}}
{{- if or .Values.auth.existingSecret .Values.auth.keys -}}yes
{{- else if not .Values.auth.insecure -}}
{{- fail "auth: name an existingSecret, or keys, or say insecure: true for a network that you trust" -}}
{{- end -}}
{{- end }}
