//! `DOCKER_HOST` of a command: the server has the engine that it was started with, whatever a later command says.

use keel_model::{RuntimeKind, Service, Stack};
use keel_server::api::client::{Client, Error};

use crate::context::Context;
use crate::failure::Failure;

/// Says that containers go to another engine than the environment of the command asks for.
///
/// # Errors
/// When the server can't be reached.
pub async fn warn_of_another(ctx: &Context, client: &Client, stack: &Stack) -> Result<(), Failure> {
    let contained = |service: &Service| service.spec.runtime == RuntimeKind::Container;
    let Some(wanted) = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()) else {
        return Ok(());
    };
    if !stack.services.values().any(contained) {
        return Ok(());
    }
    let (has, says) = match client.engine().await {
        Ok(engine) => (engine.url.clone(), format!("uses {}", engine.text)),
        Err(Error::Refused(why)) => (why.message.clone(), format!("says: {}", why.message)),
        Err(error) => return Err(error.into()),
    };
    let plain = |place: &str| place.replace("/var/run/", "/run/");
    if !plain(&has).contains(plain(&wanted).trim_end_matches('/')) {
        ctx.warn(&format!(
            "DOCKER_HOST is {wanted}, but the server was started with another and {says}; `keel server stop`, and the \
             next command starts one with this"
        ));
    }
    Ok(())
}
