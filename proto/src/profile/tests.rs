use std::fmt::Write;

use super::*;
use crate::delivery::ModelPlace;

#[test]
fn the_path_of_a_base_url() {
    for (url, path) in [
        ("https://api.openai.com/v1", "/v1"),
        ("https://api.anthropic.com", ""),
        ("https://api.anthropic.com/", ""),
        ("http://gateway.example:8080/llm/v1/", "/llm/v1"),
    ] {
        assert_eq!(base_path(url), path, "{url}");
    }
}

#[test]
fn every_route_is_one_that_can_be_matched_and_says_why_it_is_denied() {
    for kind in ProviderKind::ALL {
        let routes = kind.routes("/base");
        assert_eq!(routes.is_empty(), !kind.supports_proxy(), "{kind:?}");
        for route in routes {
            let segments: Vec<_> = route.path.split('/').skip(1).collect();
            let deep = segments.iter().filter(|segment| **segment == "**").count();
            let ends = [segments.first(), segments.last()]
                .iter()
                .filter(|segment| **segment == Some(&"**"))
                .count();
            assert_eq!(deep, ends, "{route:?}");
            assert!(segments.iter().all(|segment| !segment.is_empty()), "{route:?}");
            let names_model = route.path.contains("{model}");
            assert_eq!(names_model, route.model == ModelPlace::Path, "{route:?}");
            let denies = matches!(route.model, ModelPlace::Unread | ModelPlace::Denied);
            assert_eq!(route.reason.is_some(), denies, "{route:?}");
        }
    }
}

/// The tables in the reference, made of the data, so that they say what is.
fn tables() -> String {
    let mut providers = String::from("| provider | routes |\n|---|---|\n");
    let mut routes = String::from("| routes | model | |\n|---|---|---|\n");
    let mut seen = Vec::new();
    for kind in ProviderKind::ALL.into_iter().filter(|kind| kind.supports_proxy()) {
        let sets = kind.sets(kind.base_url().map_or("", base_path));
        let described: Vec<_> = sets
            .iter()
            .map(|(prefix, set)| match prefix.as_str() {
                "" => set.name.to_owned(),
                prefix => format!("{} below `{prefix}`", set.name),
            })
            .collect();
        writeln!(providers, "| `{}` | {} |", kind.as_str(), described.join(", ")).expect("text");
        for (_, set) in sets {
            if seen.contains(&set.name) {
                continue;
            }
            seen.push(set.name);
            let mut groups: Vec<(String, Vec<String>)> = Vec::new();
            for (method, path, model, reason) in set.rows {
                let place = match model {
                    ModelPlace::Body => "in the body".to_owned(),
                    ModelPlace::Path => "in the path".to_owned(),
                    ModelPlace::None => "none".to_owned(),
                    ModelPlace::Unread => format!("not read, **denied with a list**: {reason}"),
                    ModelPlace::Denied => format!("**denied**: {reason}"),
                };
                let text = match *method {
                    "*" => format!("`{path}`"),
                    method => format!("`{method} {path}`"),
                };
                match groups.iter_mut().find(|(other, _)| *other == place) {
                    Some((_, paths)) => paths.push(text),
                    None => groups.push((place, vec![text])),
                }
            }
            for (place, paths) in groups {
                writeln!(routes, "| {} | {place} | {} |", set.name, paths.join(", ")).expect("text");
            }
        }
    }
    format!("{providers}\n{routes}")
}

#[test]
fn the_reference_has_every_route() {
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference.md");
    let text = std::fs::read_to_string(reference).expect("readable");
    let tables = tables();
    assert!(
        text.contains(&tables),
        "docs/reference.md should contain:\n{tables}"
    );
}
