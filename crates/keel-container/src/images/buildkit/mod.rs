//! Building by the BuildKit that is part of Docker: the engine runs the steps, and asks this process for files,
//! credentials, secrets and SSH agents while it does.
//!
//! Two connections to the engine are taken over: on one it is told what to build and tells how it goes, on the other it
//! asks. When either goes, with this process or without, the engine gives the build up.
//!
//! Bollard's own support keeps the whole context in memory, has no files for BuildKit to ask for, no secrets but those in
//! files and variables, and sends passwords to registries as part of a URL: only its generated messages are used.

mod agents;
mod attributes;
mod files;
mod session;
mod told;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptions, SolveRequest, StatusRequest};
use bollard_buildkit_proto::moby::filesync::packet::file_sync_server::FileSyncServer;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use bollard_buildkit_proto::moby::sshforward::v1::ssh_server::SshServer;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioExecutor;
use hyper_util::service::TowerToHyperService;
use keel_model::Build;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};

use super::context::Context;
use super::error::Error;
use super::facts::ImageFacts;
use super::login::Logins;
use super::progress::{Listener, Progress};
use super::recipe::Recipe;
use super::{Images, Reference};
use attributes::{CONTEXT, DOCKERFILE, FILE};
use files::{Files, Tree};
use told::Told;

/// How long the engine may go on telling after the build has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Largest message of the engine, in bytes: that of its own client.
const MAX_MESSAGE: usize = 16 << 20;
/// What is asked for on the second connection.
const METHODS: [&str; 5] = [
    "/grpc.health.v1.Health/Check",
    "/moby.filesync.v1.FileSync/DiffCopy",
    "/moby.filesync.v1.Auth/Credentials",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.sshforward.v1.SSH/CheckAgent",
];
/// Asked for only where the build has agents.
const FORWARD: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
/// Before what is wrong, in BuildKit's messages.
const PREFIXES: [&str; 4] = [
    "failed to solve with frontend dockerfile.v0: ",
    "failed to solve with frontend gateway.v0: ",
    "failed to solve: ",
    "failed to build LLB: ",
];

/// What is built by BuildKit.
#[derive(Debug)]
pub struct Order {
    /// How, as far as every builder can.
    pub recipe: Recipe,
    /// How, in all.
    pub build: Build,
    /// Its files; none where the engine fetches them itself.
    pub context: Option<Context>,
    /// The credentials that the user has.
    pub logins: Logins,
}

/// A task that ends with the build.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Images {
    /// Builds an image by the engine's BuildKit, in this process's name: it is asked for files and secrets.
    ///
    /// # Errors
    /// [`Error::Build`] with the step that failed, or another [`Error`].
    pub async fn build_by_buildkit(
        &self,
        order: Order,
        listener: Option<Listener>,
    ) -> Result<ImageFacts, Error> {
        for name in order.recipe.tags.iter().chain([&order.recipe.reference]) {
            let _: Reference = name.parse()?;
        }
        let unique = unique();
        let agents = agents::find(&order.build.ssh, &unique).await;
        let agents = agents.map_err(|message| Error::Context { message })?;
        let unread: Arc<Mutex<Option<String>>> = Arc::default();
        let request = request(&order, &unique);
        let Order { recipe, build, context, logins } = order;
        let mut headers = vec![
            ("X-Docker-Expose-Session-Uuid", unique.clone()),
            ("X-Docker-Expose-Session-Name", "keel".to_owned()),
            // What was sent before from the same directory is not sent again.
            ("X-Docker-Expose-Session-Sharedkey", shared_key(&build)),
        ];
        let forward = (!agents.sockets.is_empty()).then_some(FORWARD);
        let methods = METHODS.into_iter().chain(forward);
        headers.extend(methods.map(|it| ("X-Docker-Expose-Session-Grpc-Method", it.to_owned())));
        let asked = self.engine.upgrade("/session", "h2c", &headers).await?;
        let told = self.engine.upgrade("/grpc", "h2c", &[]).await?;
        let files = Files { trees: trees(context, &build), unread: unread.clone() };
        let secrets = build.secrets.into_iter().map(|it| (it.id, it.content)).collect();
        let routes = Routes::new(HealthServer::new(session::Alive))
            .add_service(FileSyncServer::new(files).max_decoding_message_size(MAX_MESSAGE))
            .add_service(AuthServer::new(session::Credentials(logins)))
            .add_service(SecretsServer::new(session::Known(secrets)))
            .add_service(SshServer::new(session::Agents(agents.sockets.clone())));
        let _answering = Task(tokio::spawn(answer(asked, routes)));
        let solved = self.solve(told, request, &recipe, listener).await;
        drop(agents);
        // BuildKit only knows that the file did not come.
        let unread = unread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Err(_), Some(message)) = (&solved, unread) {
            return Err(Error::Context { message });
        }
        solved?;
        let found = self.inspect(&recipe.reference).await?;
        let facts = found.ok_or_else(|| Error::Absent { image: recipe.reference.clone() })?;
        for tag in &recipe.tags {
            self.tag(&facts.id, tag).await?;
        }
        Ok(facts)
    }

    async fn solve(
        &self,
        connection: Upgraded,
        request: SolveRequest,
        recipe: &Recipe,
        listener: Option<Listener>,
    ) -> Result<(), Error> {
        let channel = channel(connection).await.map_err(|error| self.broken(&error))?;
        let client = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let (mut solving, mut following) = (client.clone(), client);
        let id = request.r#ref.clone();
        let mut told = Told::default();
        let done = {
            let solve = solving.solve(request);
            let follow = async {
                let news = following.status(StatusRequest { r#ref: id }).await;
                let Ok(news) = news else { return };
                let mut news = news.into_inner();
                while let Ok(Some(news)) = news.message().await {
                    for line in told.take(news) {
                        if let Some(listener) = &listener {
                            // Whoever stops listening does not stop the build by that.
                            let _ = listener.send(Progress::line(line)).await;
                        }
                    }
                }
            };
            tokio::pin!(solve, follow);
            tokio::select! {
                biased;
                done = &mut solve => {
                    let _ = tokio::time::timeout(LAST_WORDS, follow).await;
                    done
                }
                () = &mut follow => solve.await,
            }
        };
        done.map(drop).map_err(|status| self.explain_solve(recipe, &status, told))
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Error {
        let url = self.engine.place().map(|place| place.url).unwrap_or_default();
        Error::Engine(crate::Error::Away { url, reason: error.to_string() })
    }

    fn explain_solve(&self, recipe: &Recipe, status: &tonic::Status, mut told: Told) -> Error {
        // It did not come from BuildKit: the connection is gone.
        if status.code() == tonic::Code::Unavailable || std::error::Error::source(status).is_some()
        {
            return self.broken(status);
        }
        let message = plain(status.message());
        let about = self.about(&recipe.reference, recipe.platform.as_deref());
        let meaning = about.explain_text(message);
        let image = recipe.reference.clone();
        let message = message.to_owned();
        match (meaning, told.failed()) {
            (full @ Error::DiskFull { .. }, _) => full,
            (_, Some(told::Failed { step, output, .. })) if !step.starts_with("[internal]") => {
                Error::Build { image, step, message, output }
            }
            (Error::Refused { .. } | Error::NotFound { .. }, _) => {
                Error::Build { image, step: String::new(), message, output: Vec::new() }
            }
            (other, _) => other,
        }
    }
}

/// Without what only says that something failed.
fn plain(mut message: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| message.strip_prefix(prefix)) {
        message = rest;
    }
    message
}

/// Something that nothing else is called.
fn unique() -> String {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if got.is_err() {
        // Then it need only differ from others of this machine.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = format!("{}-{now:?}", std::process::id());
        bytes.copy_from_slice(&Sha256::digest(seed)[..16]);
    }
    hex(&bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shared_key(build: &Build) -> String {
    hex(&Sha256::digest(format!("keel:{}", build.context)))
}

fn request(order: &Order, unique: &str) -> SolveRequest {
    let Order { recipe, build, context, .. } = order;
    let mut entitlements = build.entitlements.clone();
    if build.privileged {
        entitlements.push("security.insecure".to_owned());
    }
    let entries = |texts: &[String]| texts.iter().map(|text| attributes::cache(text)).collect();
    SolveRequest {
        r#ref: unique.to_owned(),
        session: unique.to_owned(),
        exporter_deprecated: "moby".to_owned(),
        exporter_attrs_deprecated: HashMap::from([("name".to_owned(), recipe.reference.clone())]),
        frontend: "dockerfile.v0".to_owned(),
        frontend_attrs: attributes::frontend(recipe, build, context.is_some())
            .into_iter()
            .collect(),
        cache: Some(CacheOptions {
            imports: entries(&build.cache_from),
            exports: entries(&build.cache_to),
            ..CacheOptions::default()
        }),
        entitlements,
        ..SolveRequest::default()
    }
}

fn trees(context: Option<Context>, build: &Build) -> BTreeMap<String, Arc<Tree>> {
    let file = |text: String| (DOCKERFILE, Tree::File { name: FILE.to_owned(), text });
    let trees = match context {
        Some(context) => {
            let (root, ignored, text) = context.into_parts();
            vec![file(text), (CONTEXT, Tree::Directory { root, ignored })]
        }
        None => build.dockerfile_inline.clone().map(file).into_iter().collect(),
    };
    trees.into_iter().map(|(name, tree)| (name.to_owned(), Arc::new(tree))).collect()
}

/// Answers what the engine asks, until it has no more questions.
async fn answer(connection: Upgraded, routes: Routes) {
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(connection, TowerToHyperService::new(routes.prepare()))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "the engine has left the session of a build");
    }
}

async fn channel(connection: Upgraded) -> Result<Channel, tonic::transport::Error> {
    let mut connection = Some(connection);
    let connector = tower::service_fn(move |_: http::Uri| {
        let taken = connection.take();
        async move { taken.ok_or_else(|| std::io::Error::other("the connection is gone")) }
    });
    Endpoint::from_static("http://engine").connect_with_connector(connector).await
}
