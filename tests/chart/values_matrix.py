"""Values that the chart is rendered with: one case a way to install it."""

from __future__ import annotations

from typing import Any

BUNDLED = {"objectStore": {"mode": "Bundled"}}
EXTERNAL = {"objectStore": {"external": {"endpoint": "https://s3.example.org", "bucket": "runs"}}}
MATRIX: dict[str, dict[str, Any]] = {
    "bundled": BUNDLED,
    "bundled_keeps_nothing": {
        "objectStore": {"mode": "Bundled", "bundled": {"persistence": {"enabled": False}}}
    },
    "external": EXTERNAL,
    "external_with_authority_and_more_stores": {
        "objectStore": {
            "external": {
                "endpoint": "https://s3.example.org",
                "bucket": "runs",
                "prefix": "forkcast/prod/",
                "caConfigMap": "s3-ca",
                "conditionalWrites": "Off",
            },
            "additional": [
                {"endpoint": "https://other.example.org", "bucket": "more", "secretName": "more"}
            ],
        }
    },
    "namespaced": {**EXTERNAL, "watchNamespaces": ["lab", "team-b"]},
    "plain_text": {**EXTERNAL, "tls": {"mode": "Disabled"}},
    "cert_manager_mutual": {
        **EXTERNAL,
        "watchNamespaces": ["lab"],
        "tls": {"mode": "CertManager", "auth": "Mutual", "issuerRef": {"name": "ca", "kind": "ClusterIssuer"}},
        "trainer": {"monitorTlsSecret": "forkcast-trainer"},
    },
    "existing_mutual": {
        **EXTERNAL,
        "tls": {"mode": "Existing", "auth": "Mutual", "existingSecret": "a", "existingClientSecret": "b"},
    },
    "no_proxy": {**EXTERNAL, "proxy": {"enabled": False}},
    "two_operators": {**EXTERNAL, "operator": {"replicas": 2}},
    "monitored": {
        **EXTERNAL,
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "disabled": ["ForkcastUnstable"], "ruleLabels": {"team": "ml"}},
            "dashboards": {"enabled": True, "namespace": "grafana", "annotations": {"folder": "ml"}},
        },
    },
    "pod_monitor": {**EXTERNAL, "metrics": {"podMonitor": {"enabled": True}}},
    "bare": {
        **EXTERNAL,
        "crds": {"enabled": False},
        "rbac": {"create": False, "aggregate": False},
        "networkPolicy": {"enabled": False},
        "monitor": {"serviceAccount": {"create": False, "name": "mine"}, "persistence": {"enabled": False}},
        "trainer": {"rolloutPriorityClass": {"create": False, "name": "low"}},
    },
    "placed": {
        **BUNDLED,
        "fullnameOverride": "fc",
        "commonLabels": {"team": "ml"},
        "imagePullSecrets": [{"name": "regcred"}],
        "image": {"repository": "registry.example.org/control", "digest": f"sha256:{'0' * 64}"},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {}}]},
        "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-x"}}],
        **{
            one: {
                "nodeSelector": {"pool": "cpu"},
                "tolerations": [{"key": "a", "operator": "Exists"}],
                "priorityClassName": "high",
                "podAnnotations": {"a": "b"},
                "podLabels": {"c": "d"},
                "extraEnv": [{"name": "E", "value": "F"}],
                "affinity": {"nodeAffinity": {}},
                "topologySpreadConstraints": [
                    {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
                ],
            }
            for one in ("operator", "monitor", "proxy")
        },
    },
}  # fmt: skip
