//! Images of earlier revisions: they are looked for before anything is changed, and fetched again where they came from.

use std::collections::BTreeMap;

use keel_container::images::{Credentials, DOCKER_HUB, Error, Images, Reference};
use keel_model::{Service, ServiceName, Stack};
use keel_store::{Store, Transaction};

use crate::error::Refusal;
use crate::keys;

/// What registries call images (`repository@sha256:…`), by their ids.
pub type Digests = BTreeMap<String, Vec<String>>;

/// Remembers what registries call images. What can't be noted can't be fetched again.
pub async fn note(store: &dyn Store, digests: Digests) {
    let write = |transaction: Transaction, (id, digests): (String, Vec<String>)| {
        let value = serde_json::to_vec(&digests).expect("a list of texts is JSON");
        transaction.put(keys::digests(&id), value)
    };
    if digests.is_empty() {
        return;
    }
    let noted = digests.into_iter().take(keel_store::MAX_OPERATIONS);
    if let Err(error) = store.commit(noted.fold(Transaction::new(), write)).await {
        tracing::warn!(%error, "what registries call the images is not noted");
    }
}

/// Brings back images that are gone.
pub struct Again<'a> {
    /// Those of the engine.
    pub images: &'a Images,
    /// Knows what registries call them.
    pub store: &'a dyn Store,
}

impl Again<'_> {
    /// Makes sure that all images are there that `next` runs and `old` does not.
    ///
    /// # Errors
    /// [`Refusal`] with a line for each service whose image can't be had.
    pub async fn bring(
        &self,
        old: Option<&Stack>,
        next: &Stack,
        credentials: &[Credentials],
    ) -> Result<(), Refusal> {
        let mut lines = Vec::new();
        for (name, service) in changed(old, next) {
            let Some(id) = service.spec.container.as_ref().and_then(|it| it.image_id.as_deref())
            else {
                continue;
            };
            if self.images.inspect(id).await?.is_none()
                && let Err(why) = self.fetch(service, id, credentials).await?
            {
                let image = service.spec.image.as_deref().unwrap_or("its image");
                lines.push(format!(
                    "service `{name}`: the image that it ran then ({image}, {id}) is not on this machine any more{why}"
                ));
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        let hint = "build or pull that version, and `keel up` with it; `keel history` lists the other generations";
        Err(Refusal::new("image_absent", lines.join("\n")).hint(hint))
    }

    /// Fetches an image by what registries call it: the same content, wherever its tag has gone. Inside, why it can't be
    /// had.
    async fn fetch(
        &self,
        service: &Service,
        id: &str,
        credentials: &[Credentials],
    ) -> Result<Result<(), String>, Refusal> {
        let known = self.store.get(&keys::digests(id)).await?;
        let known =
            known.and_then(|entry| serde_json::from_slice::<Vec<String>>(&entry.value).ok());
        let platform = service.spec.container.as_ref().and_then(|it| it.platform.as_deref());
        let mut why = String::new();
        for digest in known.unwrap_or_default() {
            let known = credentials_for(&digest, credentials);
            match self.images.pull(&digest, platform, known, None).await {
                Ok(facts) if facts.id == id => {
                    tracing::info!(image = digest, "an earlier image was fetched again");
                    return Ok(Ok(()));
                }
                Ok(_) => why = format!(", and {digest} is another one"),
                Err(Error::Engine(error)) => return Err(Error::Engine(error).into()),
                Err(error) => why = format!(", and can't be fetched again: {error}"),
            }
        }
        Ok(Err(why))
    }
}

/// The services of `next` that are new to `old`, or have another revision there.
fn changed<'a>(
    old: Option<&'a Stack>,
    next: &'a Stack,
) -> impl Iterator<Item = (&'a ServiceName, &'a Service)> {
    next.services.iter().filter(move |(name, service)| {
        let before = old.and_then(|old| old.services.get(*name));
        before.is_none_or(|before| before.spec.revision() != service.spec.revision())
    })
}

fn credentials_for(image: &str, all: &[Credentials]) -> Option<Credentials> {
    let reference: Reference = image.parse().ok()?;
    let registry = reference.registry();
    let is_for = |known: &&Credentials| {
        let host = known.server.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or(host);
        host == registry || (registry == DOCKER_HUB && host == "index.docker.io")
    };
    all.iter().find(is_for).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_the_registry() {
        let of = |server: &str| Credentials { server: server.into(), ..Credentials::default() };
        let all = [of("https://index.docker.io/v1/"), of("localhost:5000")];
        let digest = format!("sha256:{}", "a".repeat(64));
        let found =
            |name: &str| credentials_for(&format!("{name}@{digest}"), &all).map(|it| it.server);
        assert_eq!(found("redis").as_deref(), Some("https://index.docker.io/v1/"));
        assert_eq!(found("localhost:5000/app").as_deref(), Some("localhost:5000"));
        assert_eq!(found("ghcr.io/app"), None);
    }
}
