//! `llmwarden-controller crd`: the custom resource definitions, as the chart carries them.

use std::fs;

use anyhow::{Context, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use llmwarden_proto::access::LLMAccess;
use llmwarden_proto::provider::LLMProvider;

use crate::config::CrdOptions;

/// Every custom resource definition of llmwarden.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![LLMProvider::crd(), LLMAccess::crd()]
}

/// Each definition as a file name and its YAML.
pub fn files() -> anyhow::Result<Vec<(String, String)>> {
    definitions()
        .iter()
        .map(|crd| {
            let name = format!("llmwarden.io_{}.yaml", crd.spec.names.plural);
            let yaml =
                serde_saphyr::to_string(crd).with_context(|| format!("cannot write {name} as YAML"))?;
            Ok((name, yaml))
        })
        .collect()
}

/// Prints the definitions, writes them, or compares them with what stands in a directory.
pub fn run(options: &CrdOptions) -> anyhow::Result<()> {
    let files = files()?;
    if let Some(directory) = &options.check {
        for (name, yaml) in &files {
            let path = directory.join(name);
            let committed =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if committed != *yaml {
                bail!("{} is not up to date: run `make crds`", path.display());
            }
        }
    } else if let Some(directory) = &options.output_dir {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        for (name, yaml) in &files {
            let path = directory.join(name);
            fs::write(&path, yaml).with_context(|| format!("cannot write {}", path.display()))?;
        }
    } else {
        for (_, yaml) in &files {
            println!("---\n{}", yaml.trim_end());
        }
    }
    Ok(())
}
