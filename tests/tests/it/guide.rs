//! The kagent integration guide: its manifests are the examples, and they do what it says.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::names::{MANAGED_BY, MANAGED_BY_LABEL};
use llmwarden_tests::wait::same;
use llmwarden_tests::{ControlPlane, Installation, eventually, shared_dir};
use serde_json::Value;

use crate::support::SOON;

fn examples(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/kagent")
        .join(directory)
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap()
}

/// llmwarden's own documents, in an order of their own.
fn ours(documents: Vec<Value>) -> Vec<Value> {
    let mut ours: Vec<_> = documents
        .into_iter()
        .filter(|document| document["apiVersion"] == "llmwarden.io/v1alpha1")
        .collect();
    ours.sort_by_key(Value::to_string);
    ours
}

fn guide(shared: &Path) -> String {
    std::fs::read_to_string(shared.join("reference/kagent-integration-guide.md")).unwrap()
}

/// The YAML blocks of a section of the guide.
fn blocks<'a>(guide: &'a str, section: &str) -> impl Iterator<Item = &'a str> {
    let (_, text) = guide.split_once(&format!("\n## {section}\n")).expect(section);
    let text = text.split("\n## ").next().unwrap_or_default();
    text.split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
}

async fn kubectl(cluster: &ControlPlane, arguments: &[&str]) -> String {
    let output = cluster.kubectl().args(arguments).output().await.unwrap();
    assert!(output.status.success(), "kubectl {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `kubectl get` prints, in cells, without the ages.
async fn table(cluster: &ControlPlane, arguments: &[&str]) -> Vec<Vec<String>> {
    let text = kubectl(cluster, arguments).await;
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    let mut rows: Vec<Vec<String>> = text.lines().map(cells).collect();
    assert_eq!(rows[0].pop().as_deref(), Some("AGE"));
    for row in &mut rows[1..] {
        row.pop();
    }
    rows
}

#[test]
fn the_examples_are_the_guides_manifests() {
    let Some(shared) = shared_dir() else { return };
    let guide = guide(&shared);
    for (section, directory, count) in [
        ("Step-by-Step Setup", "single", 2),
        ("Complete Working Example", "single", 2),
        ("Multi-Model Agent Example", "multi-model", 4),
    ] {
        let wanted = ours(blocks(&guide, section).flat_map(documents).collect());
        let files = std::fs::read_dir(examples(directory)).unwrap();
        let shown = files.flat_map(|file| {
            let path = file.unwrap().path();
            documents(&std::fs::read_to_string(path).unwrap())
        });
        assert_eq!(wanted.len(), count, "{section}");
        assert_eq!(ours(shown.collect()), wanted, "{section}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_are_valid_for_kagent() {
    let Some(shared) = shared_dir() else { return };
    let guide = guide(&shared);
    let installation = Installation::start(&[]).await.unwrap();
    kubectl(&installation, &["create", "namespace", "kagent"]).await;
    let mut versions = 0;
    for version in std::fs::read_dir(shared.join("kagent-crds")).unwrap() {
        let crds = version.unwrap().path();
        let crds = crds.to_str().unwrap();
        // Too large for the annotation of a client-side apply.
        kubectl(&installation, &["apply", "--server-side", "-f", crds]).await;
        for kind in ["agents", "modelconfigs"] {
            // It reads the same schemas as the strict validation, and those come some time after the definitions.
            let explain = ["explain", kind, "--api-version=kagent.dev/v1alpha2"];
            eventually("kagent's schemas", SOON, async || {
                let output = installation.kubectl().args(explain).output().await.unwrap();
                if output.status.success() {
                    Ok(())
                } else {
                    Err(format!("{output:?}"))
                }
            })
            .await;
        }
        for directory in ["single", "multi-model", "proxy"] {
            let path = examples(directory);
            let path = path.to_str().unwrap();
            kubectl(&installation, &["apply", "--validate=strict", "-f", path]).await;
            kubectl(&installation, &["delete", "-f", path]).await;
        }
        // What the guide writes is not kagent's API: strict validation sees it.
        for section in ["Step-by-Step Setup", "Multi-Model Agent Example"] {
            let yaml = blocks(&guide, section).collect::<Vec<_>>().join("---\n");
            let path = installation.work_dir().join("guide.yaml");
            std::fs::write(&path, yaml).unwrap();
            let mut apply = installation.kubectl();
            apply
                .args(["apply", "--validate=strict", "--dry-run=server", "-f"])
                .arg(path);
            let refused = apply.output().await.unwrap();
            let words = String::from_utf8(refused.stderr).unwrap();
            for field in ["spec.anthropicConfig", "spec.systemPrompt", "spec.modelConfigRef"] {
                let word = format!("unknown field \"{field}\"");
                assert!(words.contains(&word), "{words}");
            }
        }
        kubectl(&installation, &["delete", "-f", crds]).await;
        versions += 1;
    }
    assert!(versions >= 2, "{versions} versions of kagent");
}

#[tokio::test(flavor = "multi_thread")]
async fn step_three_of_the_guide_goes_as_it_says() {
    let installation = Installation::start(&[]).await.unwrap();
    let master = [
        "create",
        "secret",
        "generic",
        "anthropic-master-key",
        "-n",
        "llmwarden-system",
        "--from-literal=api-key=sk-test-guide",
    ];
    kubectl(&installation, &master).await;
    kubectl(&installation, &["create", "namespace", "kagent"]).await;
    for file in ["single/provider.yaml", "single/access.yaml"] {
        let path = examples(file);
        kubectl(
            &installation,
            &["apply", "--validate=strict", "-f", path.to_str().unwrap()],
        )
        .await;
        if file == "single/provider.yaml" {
            let label = ["label", "namespace", "kagent", "llmwarden.io/ai-enabled=true"];
            kubectl(&installation, &label).await;
        }
    }

    let access = ["get", "llmaccess", "agent-anthropic", "-n", "kagent"];
    eventually("the guide's table", SOON, async || {
        let expected = [
            vec!["NAME", "READY", "PROVISIONED"],
            vec!["agent-anthropic", "True", "True"],
        ];
        same(
            &table(&installation, &access).await,
            &expected
                .map(|row| row.into_iter().map(str::to_owned).collect())
                .to_vec(),
        )
    })
    .await;
    let secret = ["get", "secret", "kagent-anthropic", "-n", "kagent"];
    assert_eq!(
        table(&installation, &secret).await,
        [["NAME", "TYPE", "DATA"], ["kagent-anthropic", "Opaque", "1"]]
    );

    let access = Api::<LLMAccess>::namespaced(installation.client(), "kagent")
        .get("agent-anthropic")
        .await
        .unwrap();
    let secrets = Api::<Secret>::namespaced(installation.client(), "kagent");
    let both = ["kagent-anthropic", "agent-anthropic.llmwarden"];
    for name in both {
        let secret = secrets.get(name).await.unwrap();
        let [owner] = secret.owner_references() else {
            panic!("{name}: {:?}", secret.owner_references())
        };
        assert_eq!(
            (owner.kind.as_str(), Some(&owner.uid), owner.controller),
            ("LLMAccess", access.metadata.uid.as_ref(), Some(true)),
            "{name}"
        );
        let label = secret.labels().get(MANAGED_BY_LABEL);
        assert_eq!(label.map(String::as_str), Some(MANAGED_BY), "{name}");
    }

    kubectl(
        &installation,
        &["delete", "llmaccess", "agent-anthropic", "-n", "kagent"],
    )
    .await;
    for name in both {
        eventually("the end of its Secrets", SOON, async || {
            secrets.get_opt(name).await.unwrap().is_none()
        })
        .await;
    }
}
