//! The custom resource definitions that the chart carries, and the reference that explains them.

use std::path::Path;
use std::process::Command;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, ResourceExt};
use llmwarden_proto::reason::Reason;
use llmwarden_tests::{ControlPlane, binaries, chart, eventually};

use crate::support::SOON;

#[test]
fn what_the_controller_prints_is_what_the_chart_carries() {
    let output = Command::new(binaries::controller().unwrap())
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
async fn the_chart_takes_over_upgrades_and_keeps_its_definitions() {
    let cluster = ControlPlane::shared().await.unwrap();
    // By hand first, as the README does it.
    let dir = chart::dir().join("files/crds");
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

    let chart = chart::dir().display().to_string();
    let install = [
        "install",
        chart::RELEASE,
        &chart,
        "--create-namespace",
        "--take-ownership",
        chart::WITHOUT_CONTROLLER,
    ];
    cluster.run_helm(install).await.unwrap();
    let policies = Api::<ValidatingAdmissionPolicy>::all(cluster.client());
    let checked = eventually("the API server's check of the policies", SOON, async || {
        let all = policies.list(&ListParams::default()).await.unwrap();
        let checks = all.into_iter().map(|policy| policy.status?.type_checking);
        checks
            .collect::<Option<Vec<_>>>()
            .filter(|checks| checks.len() == 5)
    })
    .await;
    assert!(
        checked.iter().all(|check| check.expression_warnings.is_none()),
        "{checked:?}"
    );

    let dir = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(&chart)
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(copied.success());
    let newer = dir.path().join("llmwarden");
    let file = newer.join("files/crds/llmwarden.io_llmaccesses.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("    - llma\n", "    - llma\n    - llmas\n")).unwrap();
    let upgrade = [
        "upgrade",
        chart::RELEASE,
        newer.to_str().unwrap(),
        "--reuse-values",
    ];
    cluster.run_helm(upgrade).await.unwrap();
    let names = definitions
        .get("llmaccesses.llmwarden.io")
        .await
        .unwrap()
        .spec
        .names;
    assert_eq!(names.short_names.unwrap_or_default(), ["llma", "llmas"]);

    cluster.run_helm(["uninstall", chart::RELEASE]).await.unwrap();
    let roles = Api::<ClusterRole>::all(cluster.client());
    assert!(roles.get_opt("llmwarden-controller").await.unwrap().is_none());
    let kept = definitions.list(&ListParams::default()).await.unwrap();
    let kept: Vec<_> = kept.iter().map(ResourceExt::name_any).collect();
    assert_eq!(kept, ["llmaccesses.llmwarden.io", "llmproviders.llmwarden.io"]);
}
