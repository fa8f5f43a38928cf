//! The call that takes over a project of `docker compose`.

use hyper::Method;

use super::{Client, Error};
use crate::api::adopt::{AdoptRequest, AdoptView};

impl Client {
    /// Takes over containers that `docker compose` has started, or shows which would be.
    ///
    /// # Errors
    /// [`Error`]; code `no_such_project` when there is no container of the project.
    pub async fn adopt(&self, request: &AdoptRequest) -> Result<AdoptView, Error> {
        let path = format!("/v1/stacks/{}/adopt", request.stack.name);
        self.send(Method::POST, &path, Some(request)).await
    }
}
