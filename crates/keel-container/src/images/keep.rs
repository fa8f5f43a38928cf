//! The images that are on the machine: listed, named, pushed, kept for revisions, and removed when no revision needs
//! them.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::query_parameters::{
    ListImagesOptions, PushImageOptions, RemoveImageOptions, TagImageOptions,
};
use futures_util::StreamExt as _;
use keel_model::{RevisionId, ServiceName, StackName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::credentials::Credentials;
use super::error::Error;
use super::facts::with_algorithm;
use super::flight::Flights;
use super::follow::{Seen, follow, prepared};
use super::progress::{Listener, Progress, Teller};
use super::{Images, Reference};

/// Revisions of a service whose images stay: the one that runs, and those that may be returned to.
pub const KEPT_REVISIONS: usize = 5;

/// What images of contexts are called, which live as long as the build that they are for.
const CONTEXTS: &str = "keel-context";

/// The name of an image for a context of a build that begins `now` (since 1970).
#[must_use]
pub fn context_image(now: Duration, unique: &str) -> String {
    format!("{CONTEXTS}:{}-{unique}", now.as_secs())
}

/// When the build began that an image of a context was made for, in seconds since 1970.
fn begun(tag: &str) -> Option<u64> {
    let (name, version) = tag.rsplit_once(':')?;
    let own = name.rsplit('/').next() == Some(CONTEXTS);
    let (seconds, _) = version.split_once('-').filter(|_| own)?;
    seconds.parse().ok()
}

/// An image in the list of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// Its content (`sha256:…`).
    pub id: String,
    /// Its names.
    pub tags: Vec<String>,
    /// What registries call it.
    pub digests: Vec<String>,
    /// When it was built, in seconds since 1970.
    pub created: i64,
    /// Its size in bytes, layers included.
    pub size: u64,
}

impl Images {
    /// All images of the engine that have a name.
    ///
    /// # Errors
    /// When the engine can't be asked.
    pub async fn list(&self) -> Result<Vec<ImageSummary>, Error> {
        self.listed(None).await
    }

    async fn listed(&self, names: Option<String>) -> Result<Vec<ImageSummary>, Error> {
        let filters = names.map(|names| HashMap::from([("reference".to_owned(), vec![names])]));
        let client = self.engine.client().await?;
        let all = client.list_images(Some(ListImagesOptions { filters, ..Default::default() }));
        let all = all.await.map_err(|error| self.engine.failed(&error))?;
        let summary = |image: bollard::models::ImageSummary| ImageSummary {
            id: with_algorithm(&image.id),
            tags: image.repo_tags.into_iter().filter(|tag| !tag.contains("<none>")).collect(),
            digests: image.repo_digests,
            created: image.created,
            size: u64::try_from(image.size).unwrap_or(0),
        };
        Ok(all.into_iter().map(summary).collect())
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// When there is no such image, or the text is no name.
    pub async fn tag(&self, image: &str, name: &str) -> Result<(), Error> {
        let name: Reference = name.parse()?;
        let options =
            TagImageOptions { repo: Some(name.repository()), tag: name.tag().map(str::to_owned) };
        let client = self.engine.client().await?;
        client.tag_image(image, Some(options)).await.map_err(|error| {
            match self.engine.failed(&error) {
                crate::Error::NotFound { .. } => Error::Absent { image: image.to_owned() },
                error => self.about(image, None).explain(error),
            }
        })
    }

    /// Takes a name away; the image goes with its last name, unless something uses it. What is gone already, or
    /// still used, is no error: the answer says whether the name is gone.
    ///
    /// # Errors
    /// When the engine can't be asked or refuses.
    pub async fn remove(&self, name: &str) -> Result<bool, Error> {
        let _: Reference = name.parse()?;
        let client = self.engine.client().await?;
        match client.remove_image(name, None::<RemoveImageOptions>, None).await {
            Ok(_) => Ok(true),
            Err(error) => match self.engine.failed(&error) {
                crate::Error::NotFound { .. } => Ok(true),
                crate::Error::Conflict { .. } => Ok(false),
                // Podman's words for the same; its status is 500.
                crate::Error::Refused { message, .. } if message.contains("in use by") => Ok(false),
                error => Err(self.about(name, None).explain(error)),
            },
        }
    }

    /// Pushes an image to the registry that its name says.
    ///
    /// # Errors
    /// [`Error`], as for a pull.
    pub async fn push(
        &self,
        name: &str,
        credentials: Option<Credentials>,
        listener: Option<Listener>,
    ) -> Result<(), Error> {
        let reference: Reference = name.parse()?;
        if self.inspect(name).await?.is_none() {
            return Err(Error::Absent { image: name.to_owned() });
        }
        let images = self.clone();
        let mut about = self.about(name, None);
        about.user = credentials.as_ref().map(|known| known.username.clone());
        let begin = |teller: Teller| async move {
            let client = prepared(images.engine.client().await?, String::new());
            let tag = Some(reference.version().to_owned());
            let options = PushImageOptions { tag, platform: None };
            let known = credentials.as_ref().map(Credentials::for_engine);
            let stream = client.push_image(&reference.repository(), Some(options), known);
            let stream = stream.map(|info| {
                let info = info?;
                Ok(Progress::of_engine(None, info.status.unwrap_or_default(), info.progress_detail))
            });
            let mut seen = Seen::default();
            follow(&images.engine, &about, &mut seen, stream, &teller, images.quiet).await
        };
        // Of its own: who pushes wants to know that what is there now was pushed.
        Flights::<(), Result<(), Error>>::default().join((), listener, begin).await
    }

    /// Gives the images of these revisions a name of ours each, so that nothing that removes unused images takes them,
    /// and takes that name from images of other revisions of the service. The names that were taken.
    ///
    /// # Errors
    /// When the engine can't be asked. What is not there any more can't be kept, and is no error.
    pub async fn keep(
        &self,
        stack: &StackName,
        service: &ServiceName,
        revisions: &[(RevisionId, String)],
    ) -> Result<Vec<String>, Error> {
        let repository = repository(stack, service);
        let name = |revision: &RevisionId| format!("{repository}:{revision}");
        for (revision, id) in revisions {
            match self.tag(id, &name(revision)).await {
                Ok(()) | Err(Error::Absent { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let stay: Vec<String> = revisions.iter().map(|(revision, _)| name(revision)).collect();
        self.take_away(&repository, &stay).await
    }

    /// Takes our names from all images of a service that is no more.
    ///
    /// # Errors
    /// When the engine can't be asked.
    pub async fn forget(
        &self,
        stack: &StackName,
        service: &ServiceName,
    ) -> Result<Vec<String>, Error> {
        self.take_away(&repository(stack, service), &[]).await
    }

    /// Takes away the images of contexts whose builds began longer ago than this: whoever made them was killed.
    ///
    /// # Errors
    /// When the engine can't be asked.
    pub async fn forget_contexts(&self, after: Duration) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let old = |tag: &String| {
            begun(tag).is_some_and(|at| now.as_secs().saturating_sub(at) >= after.as_secs())
        };
        for tag in self.list().await?.into_iter().flat_map(|it| it.tags).filter(old) {
            self.remove(&tag).await?;
        }
        Ok(())
    }

    async fn take_away(&self, repository: &str, stay: &[String]) -> Result<Vec<String>, Error> {
        let mut taken = Vec::new();
        let prefix = format!("{repository}:");
        for tag in
            self.listed(Some(repository.to_owned())).await?.into_iter().flat_map(|it| it.tags)
        {
            // Podman says where it would look for it.
            let own = tag.strip_prefix("localhost/").or_else(|| tag.strip_prefix("docker.io/"));
            let own = own.unwrap_or(&tag);
            if own.starts_with(&prefix)
                && !stay.iter().any(|name| name == own)
                && self.remove(&tag).await?
            {
                taken.push(own.to_owned());
            }
        }
        Ok(taken)
    }
}

/// Where the images of a service have their names of ours. Names of services may have what those of images may not.
fn repository(stack: &StackName, service: &ServiceName) -> String {
    let plain = format!("keel/{stack}/{service}");
    match plain.parse::<Reference>() {
        Ok(_) => plain,
        Err(_) => {
            let digest = Sha256::digest(format!("{stack}/{service}"));
            let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
            format!("keel/{hex}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_contexts_say_when_they_were_made() {
        let name = context_image(Duration::from_secs(77), "12-0");
        assert!(name.parse::<Reference>().is_ok());
        assert_eq!(begun(&name), Some(77));
        assert_eq!(begun(&format!("docker.io/library/{name}")), Some(77));
        assert_eq!(begun(&format!("localhost/{name}")), Some(77));
        assert_eq!((begun("keel-context:latest"), begun("x/not-keel-context:1-2")), (None, None));
    }

    #[test]
    fn services_have_names_of_their_own() {
        let name = |stack: &str, service: &str| {
            repository(&StackName::new(stack).unwrap(), &ServiceName::new(service).unwrap())
        };
        assert_eq!(name("shop", "api"), "keel/shop/api");
        assert_ne!(name("a-b", "c"), name("a", "b-c"));
        let odd = [name("shop", "API"), name("shop", "a..b"), name("shop", "-")];
        assert!(odd.iter().all(|name| name.parse::<Reference>().is_ok()), "{odd:?}");
        assert_ne!(odd[0], odd[1]);
    }
}
