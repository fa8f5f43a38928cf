//! What BuildKit may ask the user's process for while it builds: credentials of registries, secrets, an SSH agent.
//!
//! Each is asked for by the step that needs it, and goes to the engine in an answer: never in an argument, a variable, a
//! file or a log.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bollard_buildkit_proto::health::health_check_response::ServingStatus;
use bollard_buildkit_proto::health::health_server::Health;
use bollard_buildkit_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::Secrets;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use bollard_buildkit_proto::moby::filesync::v1::auth_server::Auth;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
    VerifyTokenAuthorityResponse,
};
use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::Ssh;
use bollard_buildkit_proto::moby::sshforward::v1::{
    BytesMessage, CheckAgentRequest, CheckAgentResponse,
};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use keel_model::Content;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::{Request, Response, Status, Streaming};

use crate::images::login::Logins;
use crate::images::reference::DOCKER_HUB;

/// Size of the pieces that come from an agent, in bytes.
const PIECE: usize = 32 << 10;
/// Where Docker Hub really is.
const HUB_HOSTS: [&str; 3] = ["registry-1.docker.io", "index.docker.io", DOCKER_HUB];
/// By which a step says which agent it wants.
const AGENT_ID: &str = "buildkit.ssh.id";

/// The process is there.
#[derive(Debug)]
pub(super) struct Alive;

#[tonic::async_trait]
impl Health for Alive {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("there is one service"))
    }

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("ask again instead"))
    }
}

/// The credentials that the user has, looked for when a registry wants some.
#[derive(Debug)]
pub(super) struct Credentials(pub(super) Logins);

#[tonic::async_trait]
impl Auth for Credentials {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let registry = if HUB_HOSTS.contains(&host.as_str()) { DOCKER_HUB } else { &host };
        let found = self.0.get(registry).await;
        let found = found.map_err(|error| Status::failed_precondition(error.to_string()))?;
        let answer = found.map_or_else(CredentialsResponse::default, |known| {
            let token = known.identity_token.expose();
            let (username, secret) = match token.is_empty() {
                true => (known.username.clone(), known.password.expose()),
                false => (String::new(), token),
            };
            CredentialsResponse { username, secret: secret.to_owned() }
        });
        Ok(Response::new(answer))
    }

    async fn fetch_token(
        &self,
        _: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        // The engine then asks for the credentials and fetches the token itself.
        Err(Status::unimplemented("tokens are fetched by the engine"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched by the engine"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched by the engine"))
    }
}

/// The secrets of a build, by id.
pub(super) struct Known(pub(super) BTreeMap<String, Content>);

#[tonic::async_trait]
impl Secrets for Known {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let content = self.0.get(&id);
        // A step may do without, unless it says that it can't.
        let content =
            content.ok_or_else(|| Status::not_found(format!("the build has no secret {id:?}")))?;
        Ok(Response::new(GetSecretResponse { data: content.expose().to_vec() }))
    }
}

/// The sockets of SSH agents, by id.
#[derive(Debug)]
pub(super) struct Agents(pub(super) BTreeMap<String, PathBuf>);

impl Agents {
    fn socket(&self, id: &str) -> Result<&PathBuf, Status> {
        let id = if id.is_empty() { "default" } else { id };
        let none = || Status::not_found(format!("the build has no SSH agent or key {id:?}"));
        self.0.get(id).ok_or_else(none)
    }
}

#[tonic::async_trait]
impl Ssh for Agents {
    type ForwardAgentStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.socket(&request.get_ref().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = request.metadata().get(AGENT_ID).and_then(|id| id.to_str().ok());
        let socket = self.socket(id.unwrap_or_default())?;
        let agent = UnixStream::connect(socket).await.map_err(|error| {
            Status::unavailable(format!("the SSH agent at {}: {error}", socket.display()))
        })?;
        let (from, mut to) = agent.into_split();
        let mut asked = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = asked.message().await {
                if to.write_all(&message.data).await.is_err() {
                    return;
                }
            }
        });
        let answers = stream::unfold(from, |mut from| async {
            let mut data = vec![0; PIECE];
            // Whatever ends it, there is nothing more to be had.
            let count = from.read(&mut data).await.ok().filter(|count| *count > 0)?;
            data.truncate(count);
            Some((Ok(BytesMessage { data }), from))
        });
        Ok(Response::new(answers.boxed()))
    }
}
