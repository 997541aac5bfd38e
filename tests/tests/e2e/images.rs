//! The images that users run.

use std::fs;
use std::path::Path;
use std::process::Command;

use llmwarden_tests::sidecar::image_environment;
use llmwarden_tests::{Image, binaries};
use serde_json::{Value, json};

use crate::support::figure;

/// What may have to be pulled for a sidecar.
const SIDECAR_BYTES: u64 = 8_000_000;

/// The files of an image, and the bytes in them.
fn content(image: &Image) -> (Vec<String>, u64) {
    let dir = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar")
        .arg("-xf")
        .arg(image.archive())
        .current_dir(dir.path())
        .status();
    assert!(unpacked.unwrap().success());
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        dir.path().join("blobs").join(digest.replace(':', "/"))
    };
    let index = read(&dir.path().join("index.json"));
    let manifest = read(&blob(&index["manifests"][0]));
    let mut files = Vec::new();
    let mut bytes = 0;
    for layer in manifest["layers"].as_array().unwrap() {
        let listing = Command::new("tar")
            .arg("-tvzf")
            .arg(blob(layer))
            .output()
            .unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        for line in listing.lines().filter(|line| line.starts_with('-')) {
            let fields: Vec<_> = line.split_whitespace().collect();
            bytes += fields[2].parse::<u64>().unwrap();
            files.push(format!("{} {}", fields[0], fields[5]));
        }
    }
    files.sort();
    (files, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_the_program_and_the_authorities_and_two_builds_are_one() {
    let dir = tempfile::tempdir().unwrap();
    for program in [binaries::sidecar().unwrap(), binaries::controller().unwrap()] {
        let image = Image::product(&program, dir.path()).await.unwrap();
        let again = Image::product(&program, dir.path()).await.unwrap();
        let name = program.file_name().unwrap().to_str().unwrap();
        assert_eq!(image.digest(), again.digest());
        assert_eq!(image.config()["User"], json!("65532:65532"));
        assert_eq!(image.config()["Entrypoint"], json!([format!("/{name}")]));
        if name == "llmwarden-sidecar" {
            // What tests start is to run alike.
            let environment: Vec<_> = image_environment()
                .map(|(name, value)| json!(format!("{name}={value}")))
                .collect();
            // buildah puts a PATH before them.
            let all = image.config()["Env"].as_array().unwrap();
            assert_eq!(all[1..], environment);
        }
        let (files, bytes) = content(&image);
        let expected = [
            "-r--r--r-- etc/ssl/certs/ca-certificates.crt".to_owned(),
            format!("-r-xr-xr-x {name}"),
        ];
        assert_eq!(files, expected);
        let packed = fs::metadata(image.archive()).unwrap().len();
        let digest = image.digest();
        figure(&format!("{name}: {bytes} bytes, {packed} packed, {digest}"));
        assert!(name != "llmwarden-sidecar" || packed <= SIDECAR_BYTES, "{packed}");
    }
}

#[test]
fn the_dockerfiles_build_with_the_repositorys_toolchain() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = "))
        .unwrap()
        .trim_matches('"');
    for name in ["Dockerfile.controller", "Dockerfile.sidecar"] {
        let dockerfile = read(name);
        for expected in [
            format!("/rust:{channel}-"),
            format!("RUSTUP_TOOLCHAIN={channel}\n"),
        ] {
            assert!(dockerfile.contains(&expected), "{name} lacks {expected}");
        }
    }
}
