//! Secrets and configs in a container of an engine on another machine, which does not see our files: they are put into
//! the container before it starts.

use bollard::Docker;
use bollard::body_full;
use bollard::query_parameters::UploadToContainerOptionsBuilder;
use keel_model::Spec;

use super::Inner;

/// Puts the files of `spec` into a container that has not been started. Does nothing where there are none.
pub(super) async fn files(
    inner: &Inner,
    client: &Docker,
    container: &str,
    spec: &Spec,
) -> Result<(), String> {
    if spec.files.is_empty() {
        return Ok(());
    }
    let archive = archive(spec).map_err(|error| format!("secrets and configs: {error}"))?;
    let options = UploadToContainerOptionsBuilder::default().path("/").build();
    let sent = client.upload_to_container(container, Some(options), body_full(archive.into()));
    sent.await.map_err(|error| {
        let error = inner.engine.failed(&error);
        format!("secrets and configs can't be put into the container: {error}")
    })
}

fn archive(spec: &Spec) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in &spec.files {
        let content = file.content.expose();
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(file.mode);
        header.set_uid(file.uid.unwrap_or(0).into());
        header.set_gid(file.gid.unwrap_or(0).into());
        header.set_mtime(0);
        let path = file.target.strip_prefix("/").unwrap_or(&file.target);
        archive.append_data(&mut header, path, content)?;
    }
    archive.into_inner()
}
