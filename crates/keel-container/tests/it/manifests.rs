//! An image for several kinds of machines: the right one is pulled, and what there is is said.

use keel_container::images::Images;
use keel_container::testing::Which;
use sha2::{Digest as _, Sha256};

use crate::rig::{Dockerd, Registry, on_each_engine, or_skip};

on_each_engine!(each_kind_of_machine_has_its_own_image);

fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Puts an image for this processor into the registry; its manifest as an index has it, and the digest of its
/// configuration.
fn publish(registry: &Registry, processor: &str) -> (serde_json::Value, String) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(processor.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, "file", processor.as_bytes()).unwrap();
    let layer = tar.into_inner().unwrap();
    let config = serde_json::json!({
        "architecture": processor, "os": "linux", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let blob = |media: &str, bytes: &[u8]| {
        registry.put_blob("app", bytes);
        serde_json::json!({"mediaType": media, "size": bytes.len(), "digest": sha256(bytes)})
    };
    let media = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media,
        "config": blob("application/vnd.oci.image.config.v1+json", &config),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    registry.put_manifest("app", &sha256(&manifest), media, &manifest);
    let entry = serde_json::json!({
        "mediaType": media, "size": manifest.len(), "digest": sha256(&manifest),
        "platform": {"architecture": processor, "os": "linux"},
    });
    (entry, sha256(&config))
}

async fn each_kind_of_machine_has_its_own_image(which: Which) {
    let registry = or_skip!(Registry::start());
    let docker = or_skip!(Dockerd::start_one(which, &[registry.port()]));
    let images = Images::new(docker.engine());
    let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let other = if own == "amd64" { "arm64" } else { "amd64" };
    let ((own_entry, own_id), (other_entry, other_id)) =
        (publish(&registry, own), publish(&registry, other));
    let media = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media, "manifests": [own_entry, other_entry],
    });
    let index = serde_json::to_vec(&index).unwrap();
    registry.put_manifest("app", "1", media, &index);
    let (own_id, other_id) = match docker.has_image_store() {
        true => (sha256(&index), sha256(&index)),
        false => (own_id, other_id),
    };
    let name = format!("{}/app:1", registry.name());

    let default = images.pull(&name, None, None, None).await.unwrap();
    assert_eq!((default.id, default.platform), (own_id.clone(), format!("linux/{own}")));
    let chosen = images.pull(&name, Some(&format!("linux/{other}")), None, None).await.unwrap();
    assert_eq!(chosen.id, other_id);
    assert!(!chosen.is_not_for(&format!("linux/{other}")), "{}", chosen.platform);
    let again = images.pull(&name, Some(&format!("linux/{own}")), None, None).await.unwrap();
    assert_eq!(again.id, own_id);

    let error = images.pull(&name, Some("linux/s390x"), None, None).await.unwrap_err();
    assert_eq!(error.code(), "image_platform", "{error}");
    assert!(error.to_string().contains("linux/s390x"), "{error}");
    // Podman does not say which there are.
    let both = error.to_string().contains("linux/amd64, linux/arm64")
        || error.to_string().contains("linux/arm64, linux/amd64");
    assert!(both || which == Which::Podman, "{error}");
}
