//! `keel images`: the images of services, and whether they are on the server's machine.

use keel_server::api::images::{ImageSummary, Reference};
use serde::Serialize;

use crate::cli::FileArgs;
use crate::commands::up;
use crate::context::{Context, print, print_json};
use crate::failure::Failure;
use crate::ui::{quantity, table};
use crate::{images, project, spawn};

/// Options of `keel images`.
#[derive(clap::Args, Clone, Debug)]
pub struct ImagesArgs {
    /// Only these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Print the ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// One image.
#[derive(Debug, Serialize)]
struct Row {
    service: String,
    image: String,
    id: Option<String>,
    size: Option<u64>,
    created: Option<i64>,
}

/// Runs the command.
///
/// # Errors
/// When the files are wrong, or the engine can't be asked.
pub async fn run(ctx: &Context, args: ImagesArgs) -> Result<(), Failure> {
    let lowered = project::lowered(ctx, &args.services)?;
    let services = up::selection(&lowered.stack, &args.services, false)?;
    let client = spawn::ensure_server(ctx).await?;
    let known = client.images().await?;
    let rows: Vec<Row> = images::sources(&lowered, services.as_ref())
        .into_iter()
        .map(|(service, source)| row(service, source.reference, &known))
        .collect();
    if ctx.json() {
        return print_json(&rows);
    }
    if args.quiet {
        let ids = rows.iter().filter_map(|row| row.id.as_ref());
        return print(&ids.map(|id| format!("{id}\n")).collect::<String>());
    }
    #[allow(clippy::cast_precision_loss)] // It is shown with three digits.
    let cells = rows.iter().map(|row| {
        let id = row.id.as_deref().map_or("(not here)", short);
        let size = row.size.map(|size| quantity::bytes(size as f64)).unwrap_or_default();
        vec![row.service.clone(), row.image.clone(), id.to_owned(), size]
    });
    print(&table::render(&["SERVICE", "IMAGE", "ID", "SIZE"], &cells.collect::<Vec<_>>()))
}

fn row(service: String, image: String, known: &[ImageSummary]) -> Row {
    let complete =
        image.parse::<Reference>().map(|name| format!("{}:{}", name.repository(), name.version()));
    let name = complete.as_deref().unwrap_or(&image);
    let is_it = |it: &&ImageSummary| {
        let of_podman = |tag: &String| {
            let rest = tag.strip_prefix("localhost/").or_else(|| tag.strip_prefix("docker.io/"));
            rest.map(|rest| rest.strip_prefix("library/").unwrap_or(rest)) == Some(name)
        };
        it.tags.iter().any(|tag| tag == name || of_podman(tag))
            || it.digests.iter().any(|digest| digest.replace('@', ":") == name)
    };
    let found = known.iter().find(is_it);
    Row {
        service,
        image,
        id: found.map(|it| it.id.clone()),
        size: found.map(|it| it.size),
        created: found.map(|it| it.created),
    }
}

/// The first twelve digits, as `docker images` shows them.
fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap_or(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_their_names() {
        let known = [ImageSummary {
            id: "sha256:0123456789abcdef".into(),
            tags: vec!["redis:latest".into(), "localhost/shop-api:latest".into()],
            digests: vec!["redis@sha256:ab".into()],
            created: 0,
            size: 7,
        }];
        for name in ["redis", "redis:latest", "docker.io/library/redis", "shop-api"] {
            assert_eq!(row("a".into(), name.into(), &known).size, Some(7), "{name}");
        }
        assert_eq!(row("a".into(), "redis:7".into(), &known).id, None);
        assert_eq!(short(&known[0].id), "0123456789ab");
    }
}
