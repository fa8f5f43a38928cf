//! The part of the API that takes over a project of `docker compose`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::routing::{MethodRouter, post};

use super::{Answer, Api, Shared, body};
use crate::api::adopt::{AdoptRequest, AdoptView};
use crate::error::Refusal;

pub(super) fn adopt() -> MethodRouter<Arc<Api>> {
    post(async |State(api): Shared, Path(name): Path<String>, bytes: Bytes| -> Answer<AdoptView> {
        let request: AdoptRequest = body(&bytes)?;
        if request.stack.name.as_str() != name {
            let message =
                format!("the path names stack `{name}`, the body `{}`", request.stack.name);
            return Err(Refusal::new("invalid", message).into());
        }
        Ok(Json(api.changes.adopt(request).await?))
    })
}
