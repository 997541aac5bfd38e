use super::*;

fn held(version: u64, key: &str, names: &str) -> Held {
    let document = format!(
        r#"{{"schema":1,"version":{version},"state":"active","issuedAt":"2026-01-01T00:00:00Z","keys":[{names}],
            "values":{{"baseUrl":"https://example.com"}}}}"#
    );
    parse(&document, key)
}

fn withdrawn(version: u64) -> Held {
    let document = format!(
        r#"{{"schema":1,"version":{version},"state":"withdrawn","reason":"no label","issuedAt":"2026-01-01T00:00:00Z"}}"#
    );
    parse(&document, "")
}

fn parse(document: &str, key: &str) -> Held {
    let companion = Companion::parse(|name| match name {
        names::LIVE_JSON => Some(document.as_bytes()),
        _ => Some(key.as_bytes()),
    });
    Held::of(companion.expect("valid"), &Mode::Direct).expect("direct")
}

struct Fixture {
    root: tempfile::TempDir,
    directory: Directory,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("directory");
        let directory = Directory::new(root.path(), "agent", Mode::Direct);
        Self { root, directory }
    }

    fn ensure(&mut self, held: &Held) {
        self.directory.ensure(held).expect("written");
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.root.path().join("agent").join(name)).ok()
    }

    /// What a user sees without looking for hidden files.
    fn listing(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .directory
            .entries()
            .expect("readable")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        names.retain(|name| !name.starts_with(".."));
        names.sort();
        names
    }

    fn versions(&self) -> Vec<String> {
        let entries = self.directory.entries().expect("readable").into_iter();
        let mut names: Vec<_> = entries
            .filter(|(_, path)| path.is_dir() && !path.is_symlink())
            .map(|(name, _)| name)
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_version_replaces_another_and_names_come_and_go() {
    let mut fixture = Fixture::new();
    fixture.ensure(&Held::Pending);
    assert!(!fixture.root.path().join("agent").exists());
    fixture.ensure(&held(1, "sk-1", r#""apiKey","OTHER""#));
    assert_eq!(fixture.listing(), ["OTHER", "apiKey", "baseUrl"]);
    assert_eq!(fixture.read("OTHER").as_deref(), Some("sk-1"));
    let mode = |name| {
        fs::metadata(fixture.root.path().join("agent").join(name))
            .expect("there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("apiKey"), mode("..data"), mode(".")), (0o444, 0o755, 0o755));

    fixture.ensure(&held(2, "sk-2", r#""apiKey""#));
    assert_eq!(fixture.listing(), ["apiKey", "baseUrl"]);
    assert_eq!(fixture.read("apiKey").as_deref(), Some("sk-2"));
    // Who resolved the link before the swap can still read.
    assert_eq!(fixture.read("..1/apiKey").as_deref(), Some("sk-1"));
    for (_, since) in &mut fixture.directory.retired {
        *since = since.checked_sub(RETIREMENT).expect("later than that");
    }
    fixture.ensure(&held(2, "sk-2", r#""apiKey""#));
    assert_eq!(fixture.versions(), ["..2"]);
}

#[test]
fn a_withdrawn_key_is_gone_at_once() {
    let mut fixture = Fixture::new();
    fixture.ensure(&held(1, "sk-1", r#""apiKey""#));
    fixture.ensure(&withdrawn(2));
    assert_eq!(
        (fixture.listing(), fixture.versions()),
        (vec![], vec!["..2".to_owned()])
    );
    assert!(
        fs::read_dir(fixture.root.path().join("agent/..2"))
            .expect("there")
            .flatten()
            .all(|entry| entry.file_name() == DOCUMENT)
    );
    fixture.ensure(&held(3, "sk-3", r#""apiKey""#));
    assert_eq!(fixture.read("apiKey").as_deref(), Some("sk-3"));
}

#[test]
fn what_the_files_show_is_what_a_restart_goes_on_from() {
    let states = [
        held(1, "sk-1", r#""apiKey","OTHER""#),
        withdrawn(2),
        Held::Withdrawn(Withdrawn::deleted(2)),
    ];
    for state in states {
        let mut fixture = Fixture::new();
        assert!(matches!(fixture.directory.restore(), Held::Pending));
        fixture.ensure(&state);
        let restored = Directory::new(fixture.root.path(), "agent", Mode::Direct).restore();
        assert_eq!(restored.to_string(), state.to_string());
        if let (Held::Active(old), Held::Active(new)) = (&state, &restored) {
            assert_eq!(new.expose("OTHER"), old.expose("OTHER"));
        }
    }
}

#[test]
fn damage_is_repaired_and_a_failure_says_where() {
    let mut fixture = Fixture::new();
    let state = held(1, "sk-1", r#""apiKey""#);
    let damages: [fn(&Path); 4] = [
        |dir| fs::remove_file(dir.join("apiKey")).expect("removed"),
        |dir| fs::remove_file(dir.join("..data/apiKey")).expect("removed"),
        |dir| fs::remove_file(dir.join(CURRENT)).expect("removed"),
        |dir| fs::remove_dir_all(dir).expect("removed"),
    ];
    for damage in damages {
        fixture.ensure(&state);
        damage(&fixture.root.path().join("agent"));
        fixture.ensure(&state);
        assert_eq!(fixture.read("apiKey").as_deref(), Some("sk-1"));
    }
    let in_the_way = Fixture::new();
    fs::write(in_the_way.root.path().join("agent"), "").expect("written");
    let mut directory = in_the_way.directory;
    let error = directory.ensure(&state).expect_err("not a directory").to_string();
    assert!(error.contains("agent"), "{error}");
}

#[test]
fn the_rest_of_an_interrupted_write_does_no_harm() {
    let mut fixture = Fixture::new();
    fixture.ensure(&held(1, "sk-1", r#""apiKey""#));
    let dir = fixture.root.path().join("agent");
    fs::create_dir(dir.join(DRAFT)).expect("created");
    fs::write(dir.join(DRAFT).join("apiKey"), "sk").expect("written");
    fs::create_dir(dir.join("..2")).expect("created");
    symlink("..2", dir.join("....data.new")).expect("linked");
    fixture.directory = Directory::new(fixture.root.path(), "agent", Mode::Direct);
    assert_eq!(fixture.directory.restore().to_string(), "version 1");
    fixture.ensure(&held(2, "sk-2", r#""apiKey""#));
    assert_eq!(fixture.read("apiKey").as_deref(), Some("sk-2"));
}

#[test]
fn what_direct_mode_left_goes_in_proxy_mode_and_is_tried_again() {
    let mut fixture = Fixture::new();
    fixture.ensure(&held(1, "sk-1", r#""apiKey""#));
    let mode = Mode::Proxy("http://127.0.0.1:9470/proxy/agent".into());
    fixture.directory = Directory::new(fixture.root.path(), "agent", mode);
    let current = fixture.root.path().join("agent").join(CURRENT);
    let version = fs::read_link(&current).expect("a link");
    // Not to be removed as a file.
    fs::remove_file(&current).expect("removed");
    fs::create_dir(&current).expect("made");
    let error = fixture.directory.ensure(&Held::Pending).expect_err("in the way");
    assert!(error.to_string().contains(CURRENT), "{error}");
    fs::remove_dir(&current).expect("removed");
    symlink(version, &current).expect("linked");
    assert_eq!(fixture.read("apiKey").as_deref(), Some("sk-1"));

    fixture.ensure(&Held::Pending);
    assert_eq!(fixture.read("apiKey"), None);
    assert_eq!((fixture.listing(), fixture.versions()), (Vec::new(), Vec::new()));
    assert!(!current.is_symlink());
}
