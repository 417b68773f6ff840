{{- define "ireko.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "ireko.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "ireko.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "ireko.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Objects without a namespace carry the release's, so that two releases of one name do not meet. */}}
{{- define "ireko.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "ireko.fullname" .) }}
{{- end }}

{{- define "ireko.mlflowName" -}}
{{- printf "%s-mlflow" (include "ireko.fullname" .) }}
{{- end }}

{{- define "ireko.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "ireko.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name: name an existing ServiceAccount, or set serviceAccount.create=true" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "ireko.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: ireko
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "ireko.selector" -}}
app.kubernetes.io/name: {{ include "ireko.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "ireko.labels" -}}
{{ include "ireko.selector" . }}
{{ include "ireko.commonLabels" . }}
{{- end }}

{{- define "ireko.mlflowSelector" -}}
app.kubernetes.io/name: {{ include "ireko.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: demo-mlflow
{{- end }}

{{- define "ireko.mlflowLabels" -}}
{{ include "ireko.mlflowSelector" . }}
{{ include "ireko.commonLabels" . }}
{{- end }}

{{/* An image of a {repository, tag, digest} and the version of the chart. */}}
{{- define "ireko.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .version .image.tag) }}
{{- end }}
{{- end }}

{{- define "ireko.trainerImage" -}}
{{- include "ireko.image" (dict "image" .Values.trainer.image "version" .Chart.AppVersion) }}
{{- end }}

{{- define "ireko.mlflowImage" -}}
{{- if .Values.demoMlflow.image.repository }}
{{- include "ireko.image" (dict "image" .Values.demoMlflow.image "version" .Chart.AppVersion) }}
{{- else }}
{{- include "ireko.trainerImage" . }}
{{- end }}
{{- end }}

{{- define "ireko.trackingUri" -}}
{{- if .Values.tracking.uri }}
{{- .Values.tracking.uri }}
{{- else if .Values.demoMlflow.enabled }}
{{- printf "http://%s.%s.svc:%v" (include "ireko.mlflowName" .) .Release.Namespace .Values.demoMlflow.port }}
{{- else }}
{{- fail "tracking.uri: name the MLflow tracking server, e.g. http://mlflow.mlflow.svc:5000, or set demoMlflow.enabled=true to try the chart with a small one" }}
{{- end }}
{{- end }}

{{/* Two settings that a schema cannot compare. */}}
{{- define "ireko.check" -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.leaderElection.enabled) }}
{{- fail "leaderElection.enabled: with more than one replica exactly one may work, so leave it true, or set replicas=1" }}
{{- end }}
{{- if and (eq .Values.kuberay.check "Require") (not (.Capabilities.APIVersions.Has "ray.io/v1/RayJob")) }}
{{- fail "kuberay.check: the cluster serves no ray.io/v1 RayJob. Install KubeRay 1.6 or newer first (docs/install.md), or set kuberay.check=Warn" }}
{{- end }}
{{- if .Values.tracking.uri }}
{{- if .Values.demoMlflow.enabled }}
{{- fail "tracking.uri: leave it empty together with demoMlflow.enabled=true, which brings its own server; put the other one into tracking.allowedUris" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the operator may do with the objects of the namespaces that it watches. Secrets are not among it. */}}
{{- define "ireko.rules" -}}
- apiGroups: [ireko.dev]
  resources: [compressionruns]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [ireko.dev]
  resources: [compressionruns/status]
  verbs: [patch]
# Owner references that block the deletion of a run need this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [ireko.dev]
  resources: [compressionruns/finalizers]
  verbs: [update]
- apiGroups: [ray.io]
  resources: [rayjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, list]
{{- end }}
