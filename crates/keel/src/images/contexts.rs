//! Further contexts of a build. An image stands for each while it is built: of the files of a directory, or what the file
//! names. Builders that know no further contexts take that too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use keel_container::images::context_image;
use keel_model::Build;

use super::build::{Builder, Wanted};
use crate::failure::Failure;

/// Images by the names that a Dockerfile has for them.
pub type Names = BTreeMap<String, String>;

/// The images of contexts.
#[derive(Debug, Default)]
pub struct Contexts {
    /// By the names of the contexts.
    pub names: Names,
    /// Those that were made for it.
    made: BTreeSet<String>,
}

impl Contexts {
    /// Makes the images of the contexts of a build.
    ///
    /// # Errors
    /// When one can't be made; those before it are to be removed all the same.
    pub async fn make(
        &mut self,
        builder: &Builder<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<(), Failure> {
        let contexts = &wanted.build.additional_contexts;
        let own = |value: &String| value.strip_prefix("docker-image://").is_none();
        if contexts.values().any(own) {
            // What is made here has to be removed from here.
            let info = builder.images.engine().info().await;
            info.map_err(|error| Failure::failed("engine_away", error.to_string()))?;
        }
        for (number, (name, value)) in contexts.iter().enumerate() {
            if let Some(image) = value.strip_prefix("docker-image://") {
                self.names.insert(name.clone(), image.to_owned());
                continue;
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let image = context_image(now, &format!("{}-{number}", std::process::id()));
            let empty = tempfile::tempdir().map_err(|error| {
                Failure::failed("build_failed", format!("a context can't be prepared: {error}"))
            })?;
            let build = build_of(value, empty.path(), wanted.build);
            self.made.insert(image.clone());
            let context = Wanted { reference: &image, build: &build, quiet: true, ..*wanted };
            Box::pin(builder.image(&context, &Names::new())).await?;
            self.names.insert(name.clone(), image);
        }
        Ok(())
    }

    /// Takes away what was made. What can't be is taken by the server later.
    pub async fn remove(self, builder: &Builder<'_>) {
        for image in self.made {
            let _ = builder.images.remove(&image).await;
        }
    }
}

/// How the image of a context is built: of a directory, or of what a URL leads to.
fn build_of(value: &str, empty: &Path, of: &Build) -> Build {
    let is_url = value.starts_with("http://") || value.starts_with("https://");
    let (context, add) = match is_url {
        true => (empty.display().to_string(), format!("ADD {value} /")),
        false => (value.to_owned(), "COPY . /".to_owned()),
    };
    Build {
        context,
        dockerfile_inline: Some(format!("FROM scratch\n{add}\n")),
        platforms: of.platforms.clone(),
        no_cache: of.no_cache,
        ..Build::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_a_directory_or_what_a_url_leads_to() {
        let of = |value: &str| build_of(value, Path::new("/empty"), &Build::default());
        let directory = of("/src/lib");
        assert_eq!(directory.context, "/src/lib");
        assert_eq!(directory.dockerfile_inline.as_deref(), Some("FROM scratch\nCOPY . /\n"));
        let url = of("https://example.com/a.tar");
        assert_eq!(url.context, "/empty");
        assert!(url.dockerfile_inline.unwrap().contains("ADD https://example.com/a.tar /"));
    }
}
