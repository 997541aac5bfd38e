//! The custom resource definitions that the chart carries, and the reference that explains them.

use std::path::Path;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::runtime::wait::{await_condition, conditions};
use llmwarden_proto::reason::Reason;
use llmwarden_tests::{ControlPlane, binaries};

use crate::support::SOON;

#[test]
fn what_the_controller_prints_is_what_the_chart_carries() {
    let output = std::process::Command::new(binaries::controller().unwrap())
        .arg("crd")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/llmwarden/files/crds");
    let mut carried: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            std::fs::read_to_string(entry.unwrap().path())
                .unwrap()
                .trim()
                .to_owned()
        })
        .collect();
    let mut printed: Vec<String> = printed
        .split("---\n")
        .map(|document| document.trim().to_owned())
        .filter(|document| !document.is_empty())
        .collect();
    carried.sort();
    printed.sort();
    assert!(printed == carried, "run `make crds`");
}

#[test]
fn the_reference_lists_every_reason_and_no_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n### Reasons\n").expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: Vec<_> = rows.filter_map(|row| row.split('`').next()).collect();
    let known: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(listed, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_definitions_are_established() {
    let cluster = ControlPlane::shared().await.unwrap();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/llmwarden/files/crds");
    let output = cluster
        .kubectl()
        .args(["apply", "--server-side", "--validate=strict", "-f"])
        .arg(dir)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client());
    for name in ["llmaccesses.llmwarden.io", "llmproviders.llmwarden.io"] {
        let established = await_condition(definitions.clone(), name, conditions::is_crd_established());
        tokio::time::timeout(SOON, established)
            .await
            .expect(name)
            .unwrap();
    }
}
