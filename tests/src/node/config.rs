//! The configuration files of the node's processes. JSON is written where YAML is asked for, which it is a part of.

use std::path::Path;

use serde_json::{Value, json};

use super::NAME;
use crate::image::BUSYBOX;

const PODS: &str = "10.244.0.0/24";
/// Where Debian has them.
const PLUGINS: &str = "/usr/lib/cni";

/// Only sockets are at their usual places.
pub(super) fn containerd(root: &Path, network: &Path) -> String {
    let (root, network) = (root.display(), network.display());
    format!(
        r#"
version = 2
root = "{root}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BUSYBOX}"
# Lowering it takes a capability that root in a container lacks.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{network}"
"#
    )
}

/// A bridge for pods.
pub(super) fn network(dir: &Path) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods",
                "isGateway": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": dir.join("addresses"),
                    "ranges": [[{ "subnet": PODS }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

pub(super) fn kubelet(authority: &Path, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": { "x509": { "clientCAFile": authority } },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        // A machine that is nearly full does for pods of a few kilobytes.
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "100Mi", "imagefs.available": "100Mi" },
        "failCgroupV1": false,
        "failSwapOn": false,
        "imageGCHighThresholdPercent": 100,
        // There is no name server.
        "resolvConf": "",
        "volumePluginDir": "/var/lib/kubelet/plugins-of-volumes",
    })
}

pub(super) fn proxy(kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": kubeconfig },
        "clusterCIDR": PODS,
        // These limits are the machine's.
        "conntrack": { "maxPerCore": 0, "min": 0 },
        "hostnameOverride": NAME,
        "mode": "iptables",
    })
}
