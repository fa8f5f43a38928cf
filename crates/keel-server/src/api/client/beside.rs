//! Calls about what is beside the instances of a stack: its volumes, what it uses, commands that run once.

use hyper::Method;
use keel_model::InstanceId;

use super::{Client, Error};
use crate::api::once::{OnceRequest, OnceView, RemoveOnceRequest};
use crate::api::usage::{UsageView, VolumeView};

impl Client {
    /// The named volumes of a stack that exist, and its external ones.
    ///
    /// # Errors
    /// [`Error`]; code `no_such_stack` when there is none of that name.
    pub async fn volumes(&self, stack: &str) -> Result<Vec<VolumeView>, Error> {
        self.get(&format!("/v1/stacks/{stack}/volumes")).await
    }

    /// What the running instances of a stack use.
    ///
    /// # Errors
    /// [`Error`]; code `no_such_stack` when there is none of that name.
    pub async fn stats(&self, stack: &str) -> Result<Vec<UsageView>, Error> {
        self.get(&format!("/v1/stacks/{stack}/stats")).await
    }

    /// Makes a container of a service for one command, and does not start it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn make_once(&self, request: &OnceRequest) -> Result<OnceView, Error> {
        let path = format!("/v1/stacks/{}/once", request.stack.name);
        self.send(Method::POST, &path, Some(request)).await
    }

    /// Takes such a container away, with what only it had. One that is not there is no error.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn remove_once(&self, stack: &str, id: &InstanceId) -> Result<(), Error> {
        let path = format!("/v1/stacks/{stack}/once/remove");
        let request = RemoveOnceRequest { id: id.clone() };
        self.send::<_, serde_json::Value>(Method::POST, &path, Some(&request)).await.map(drop)
    }
}
