//! One order from its beginning, or from where it was cut off, to the certificate.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, Identifier,
    NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use keel_model::Timestamp;
use keel_route::snapshot::Challenges;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::Wanted;
use crate::examine::examine;
use crate::proof::tls_alpn;
use crate::records::{Issued, PendingOrder};
use crate::showcase::Showcase;
use crate::vault::Vault;

/// An authority has this long to look at all proofs, and as long again to issue.
const PATIENCE: Duration = Duration::from_secs(90);
/// An authority that has had enough and does not say for how long is left alone for this long.
const PAUSE: Duration = Duration::from_secs(3600);
/// The longest that an authority is left alone because it says so.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// For people.
    pub reason: String,
    /// The authority wants to be left alone for this long, whatever it is asked for.
    pub pause: Option<Duration>,
    /// The authority does not know our account.
    pub account_lost: bool,
    /// The order leads nowhere.
    pub order_lost: bool,
}

impl Failure {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), pause: None, account_lost: false, order_lost: false }
    }

    /// The order is not worth being taken up again.
    fn final_(reason: impl Into<String>) -> Self {
        Self { order_lost: true, ..Self::new(reason) }
    }

    /// With what the authority asked for in a header.
    pub(crate) fn with_retry_after(mut self, time: Option<Duration>) -> Self {
        if let Some(time) = time {
            self.pause = Some(time.min(LONGEST_PAUSE));
        }
        self
    }
}

/// What kind of problem it is, without the namespace (RFC 8555, 6.7).
fn kind(problem: &Problem) -> &str {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind)
}

fn text(problem: &Problem) -> String {
    let detail = problem.detail.as_deref().unwrap_or("no details");
    let parts = problem.subproblems.iter().map(|part| format!("; {part}"));
    parts.fold(format!("{detail} ({})", kind(problem)), |text, part| text + &part)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let Error::Api(problem) = &error else {
            return Self::new(chain_of(&error));
        };
        let pause = (kind(problem) == "rateLimited").then_some(PAUSE);
        // The connection is fine, so what the authority says of the order is final.
        let order_lost = !matches!(kind(problem), "serverInternal" | "rateLimited" | "badNonce");
        let account_lost = kind(problem) == "accountDoesNotExist";
        Self { reason: text(problem), pause, account_lost, order_lost }
    }
}

/// An error with its causes: "connection refused" is in the last one.
fn chain_of(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

/// A new order, written down together with its key before and after the authority hears of it.
pub async fn begin(
    vault: &Vault,
    account: &Account,
    wanted: &Wanted,
    replaces: Option<&Issued>,
    now: Timestamp,
) -> Result<(PendingOrder, Order), Failure> {
    let key = KeyPair::generate().map_err(|error| Failure::new(error.to_string()))?;
    let names = wanted.names.clone();
    let mut pending =
        PendingOrder { names, key: key.serialize_pem(), url: None, since: now, resumed: 0 };
    let record = format!("orders/{}", wanted.id());
    vault.put(&record, &pending).await?;
    let names: Vec<_> = wanted.names.iter().map(|name| Identifier::Dns(name.clone())).collect();
    let leaf = replaces.and_then(|issued| leaf(issued).ok());
    let replaced = leaf.as_ref().and_then(|leaf| CertificateIdentifier::try_from(leaf).ok());
    let order = match replaced {
        Some(replaced) => {
            let order = account.new_order(&NewOrder::new(&names).replaces(replaced)).await;
            // Without the hint where the authority does not know it, or has it for replaced already.
            match order {
                Err(Error::Unsupported(_)) => account.new_order(&NewOrder::new(&names)).await,
                Err(Error::Api(problem)) if kind(&problem) != "rateLimited" => {
                    account.new_order(&NewOrder::new(&names)).await
                }
                other => other,
            }
        }
        None => account.new_order(&NewOrder::new(&names)).await,
    }?;
    pending.url = Some(order.url().to_owned());
    vault.put(&record, &pending).await?;
    Ok((pending, order))
}

/// An order that was cut off.
pub async fn resume(account: &Account, pending: &PendingOrder) -> Result<Order, Failure> {
    let url = pending.url.clone();
    let url = url.ok_or_else(|| Failure::final_("the order was never answered"))?;
    Ok(account.order(url).await?)
}

/// Proves the names, has the certificate issued and fetches it.
pub async fn complete(
    order: &mut Order,
    wanted: &Wanted,
    pending: &PendingOrder,
    showcase: &Showcase,
) -> Result<Issued, Failure> {
    if order.state().status == OrderStatus::Pending {
        let proved = prove(order, wanted, showcase).await;
        showcase.show(Challenges::default());
        proved?;
    }
    if order.state().status == OrderStatus::Ready {
        order.finalize_csr(&request(wanted, &pending.key)?).await?;
    }
    match order.state().status {
        OrderStatus::Processing | OrderStatus::Valid => {}
        status => return Err(Failure::final_(format!("the order is {status:?}"))),
    }
    let chain = order.poll_certificate(&policy()).await?;
    issued(wanted, chain, pending.key.clone())
}

fn policy() -> RetryPolicy {
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).backoff(1.5).timeout(PATIENCE)
}

/// Shows all proofs at once, waits until the proxies show them too, and lets the authority look.
async fn prove(order: &mut Order, wanted: &Wanted, showcase: &Showcase) -> Result<(), Failure> {
    let kind = wanted.challenge();
    let mut challenges = Challenges::default();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Valid => continue,
            status => return Err(Failure::final_(format!("the proof of a name is {status:?}"))),
        }
        let name = name_of(&authorization.identifier().identifier.clone())?;
        let challenge = authorization.challenge(kind.clone());
        let challenge = challenge.ok_or_else(|| unoffered(&name, &kind))?;
        let proof = challenge.key_authorization();
        match kind {
            ChallengeType::TlsAlpn01 => {
                let shown = tls_alpn(&name, &proof);
                challenges.tls_alpn.push(shown.map_err(|e| Failure::new(e.to_string()))?);
            }
            _ => {
                challenges.http.insert(challenge.token.clone(), proof.as_str().to_owned());
            }
        }
    }
    showcase.show_everywhere(challenges).await?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Pending
            && let Some(mut challenge) = authorization.challenge(kind.clone())
        {
            challenge.set_ready().await?;
        }
    }
    match order.poll_ready(&policy()).await {
        Ok(OrderStatus::Ready) => Ok(()),
        Err(Error::Timeout(_)) => Err(Failure::final_(format!(
            "the authority did not finish looking at the proof within {} s",
            PATIENCE.as_secs()
        ))),
        Ok(_) | Err(Error::Api(_)) => Err(Failure::final_(seen(order).await)),
        Err(error) => Err(error.into()),
    }
}

fn name_of(identifier: &Identifier) -> Result<String, Failure> {
    match identifier {
        Identifier::Dns(name) => Ok(name.clone()),
        _ => Err(Failure::final_("the authority wants a proof of something that is no name")),
    }
}

fn unoffered(name: &str, kind: &ChallengeType) -> Failure {
    let kind = match kind {
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        _ => "http-01",
    };
    Failure::final_(format!("the authority offers no {kind} proof for {name}"))
}

/// What the authority saw when it looked for the proofs that failed.
async fn seen(order: &mut Order) -> String {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        let name = name_of(&authorization.identifier().identifier.clone()).unwrap_or_default();
        let problems = authorization.challenges.iter().filter_map(|c| c.error.as_ref());
        reasons.extend(problems.map(|problem| format!("{name}: {}", text(problem))));
    }
    if reasons.is_empty() {
        let problem = order.state().error.as_ref().map(text);
        return problem.unwrap_or_else(|| "the authority did not accept the proof".to_owned());
    }
    reasons.join("; ")
}

/// The request for the certificate, in DER.
fn request(wanted: &Wanted, key: &str) -> Result<Vec<u8>, Failure> {
    let failed = |error: rcgen::Error| Failure::final_(format!("can't ask for it: {error}"));
    let key = KeyPair::from_pem(key).map_err(failed)?;
    let mut params = CertificateParams::new(wanted.names.clone()).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key).map_err(failed)?.der().to_vec())
}

fn leaf(issued: &Issued) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_slice(issued.chain.as_bytes()).map_err(|error| error.to_string())
}

fn issued(wanted: &Wanted, chain: String, key: String) -> Result<Issued, Failure> {
    let examined = examine(&chain, &key);
    let examined =
        examined.map_err(|why| Failure::final_(format!("the certificate is no good: {why}")))?;
    Ok(Issued {
        names: wanted.names.clone(),
        directory: wanted.acme.directory.clone(),
        not_before: examined.not_before,
        not_after: examined.not_after,
        chain,
        key,
    })
}

/// When the authority wants `issued` to be renewed, and when it is to be asked again (RFC 9773).
pub async fn ask(account: &Account, issued: &Issued) -> Result<(crate::Window, Duration), Failure> {
    let leaf = leaf(issued).map_err(Failure::new)?;
    let id = CertificateIdentifier::try_from(&leaf).map_err(Failure::new)?;
    let (info, again) = account.renewal_info(&id).await?;
    let at = |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000));
    let window = crate::Window {
        start: at(info.suggested_window.start.unix_timestamp()),
        end: at(info.suggested_window.end.unix_timestamp()),
    };
    Ok((window, again))
}
