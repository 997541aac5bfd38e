use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::*;

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn claim(name: &str, secret: &str) -> Claim {
    Claim {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        created: None,
        secret_name: secret.to_owned(),
        provider: "anthropic".to_owned(),
    }
}

fn secret(name: &str, owner: Option<&str>) -> Arc<ObservedSecret> {
    let owner = owner.map(|access| OwnerReference {
        uid: format!("uid-{access}"),
        controller: Some(true),
        ..OwnerReference::default()
    });
    Arc::new(ObservedSecret::from_metadata(ObjectMeta {
        name: Some(name.to_owned()),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }))
}

fn accesses(affected: &Affected) -> Vec<String> {
    let mut names: Vec<_> = affected
        .accesses
        .iter()
        .map(|access| access.name.clone())
        .collect();
    names.sort();
    names
}

#[test]
fn a_secret_concerns_its_owner_and_who_wants_its_name() {
    let mut index = Index::default();
    for (namespace, name, wanted) in [
        ("a", "owner", "old"),
        ("a", "wants", "s"),
        ("a", "other", "t"),
        ("b", "away", "s"),
    ] {
        index.apply(&key(namespace, name), claim(name, wanted));
    }
    let affected = index.apply(&key("a", "s"), Foreign(secret("s", Some("owner"))));
    assert_eq!(accesses(&affected), ["owner", "wants"]);
    let affected = index.apply(
        &key("a", "other.llmwarden"),
        Managed(secret("other.llmwarden", None)),
    );
    assert_eq!(accesses(&affected), ["other"]);
    // Whom it belonged to is concerned too.
    let affected = index.apply(&key("a", "s"), Foreign(secret("s", Some("other"))));
    assert_eq!(accesses(&affected), ["other", "owner", "wants"]);
}

#[test]
fn an_owner_in_another_namespace_is_none() {
    let mut index = Index::default();
    index.apply(&key("a", "agent"), claim("agent", "s"));
    let affected = index.apply(&key("b", "t"), Foreign(secret("t", Some("agent"))));
    assert_eq!(accesses(&affected), [""; 0]);
    assert!(index.owned_by("a", "uid-agent").is_empty());
    assert!(index.owner_of("b", &secret("t", Some("agent"))).is_none());
}

#[test]
fn what_is_gone_is_found_in_no_way() {
    let mut index = Index::default();
    let (access, taken) = (key("a", "agent"), key("a", "s"));
    index.apply(&access, claim("agent", "s"));
    index.apply(&access, claim("agent", "renamed"));
    assert_eq!(index.claims_of("a", "s").count(), 0);
    assert_eq!(index.claims_of("a", "renamed").count(), 1);
    assert_eq!(index.access_count("anthropic"), 1);
    index.apply(&taken, Managed(secret("s", Some("agent"))));
    assert_eq!(index.owned_by("a", "uid-agent").len(), 1);

    index.reset::<Claim>(|_| true, BTreeMap::new());
    index.reset::<Managed>(|_| true, BTreeMap::new());
    assert_eq!(
        (
            index.access_count("anthropic"),
            index.claims_of("a", "renamed").count()
        ),
        (0, 0)
    );
    assert!(index.owned_by("a", "uid-agent").is_empty());
    let ways = [
        &index.claims_by_provider,
        &index.claims_by_secret,
        &index.claims_by_uid,
        &index.managed_by_owner,
    ];
    assert!(ways.iter().all(|ways| ways.0.is_empty()), "{ways:?}");
}
