//! Files in and out of a container, by the engine's archives.

use std::io;
use std::path::{Path, PathBuf};

use bollard::query_parameters::{
    ContainerArchiveInfoOptions, DownloadFromContainerOptions, UploadToContainerOptions,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use keel_runtime::ContainerExec;

use crate::{Engine, Error};

/// Go's bits for what a file is, which the engine tells.
const DIRECTORY: u32 = 1 << 31;
/// See [`DIRECTORY`].
const LINK: u32 = 1 << 27;

/// What is at a path of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// It is a directory.
    pub is_directory: bool,
    /// It is a link, to here.
    pub link: Option<PathBuf>,
}

/// The files of a container.
#[derive(Debug)]
pub struct Files {
    engine: Engine,
    container: String,
}

impl Files {
    /// Those of the container that `of` describes. Asks nobody yet.
    #[must_use]
    pub fn new(of: &ContainerExec) -> Self {
        Self { engine: Engine::of(of), container: of.container.clone() }
    }

    /// What is at `path`, if anything is.
    ///
    /// # Errors
    /// When the engine can't say.
    pub async fn look(&self, path: &Path) -> Result<Option<Found>, Error> {
        let client = self.engine.client().await?;
        let options = ContainerArchiveInfoOptions { path: path.display().to_string() };
        let found = client.get_container_archive_info(&self.container, Some(options)).await;
        match found.map_err(|error| self.engine.failed(&error)) {
            Ok(found) => Ok(Some(Found {
                name: found.name,
                is_directory: found.file_mode & DIRECTORY != 0,
                link: (found.file_mode & LINK != 0).then(|| found.link_target.into()),
            })),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The file or directory at `path` as an archive whose root has its name.
    ///
    /// # Errors
    /// When the engine can't be asked; that it has no more is said in the stream.
    pub async fn read(
        &self,
        path: &Path,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + Unpin + use<>, Error> {
        let client = self.engine.client().await?;
        let options = DownloadFromContainerOptions { path: path.display().to_string() };
        let engine = self.engine.clone();
        let pieces = client.download_from_container(&self.container, Some(options));
        let pieces = pieces.map(move |piece| {
            piece.map_err(|error| io::Error::other(engine.failed(&error).to_string()))
        });
        Ok(Box::pin(pieces))
    }

    /// Unpacks an archive in `directory`, which is there.
    ///
    /// # Errors
    /// When the archive can't be read or unpacked.
    pub async fn write(
        &self,
        directory: &Path,
        archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), Error> {
        let client = self.engine.client().await?;
        let options = UploadToContainerOptions {
            path: directory.display().to_string(),
            ..UploadToContainerOptions::default()
        };
        let body = bollard::body_try_stream(archive);
        let written = client.upload_to_container(&self.container, Some(options), body).await;
        written.map_err(|error| self.engine.failed(&error))
    }
}
