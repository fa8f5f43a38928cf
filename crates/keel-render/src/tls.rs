//! Certificates: which files they become, and for which names each one is shown.

use keel_route::snapshot::Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use crate::gaps::Lack;
use crate::plan::Plan;
use crate::rules::is_host;

/// A certificate that can be used.
#[derive(Clone, Debug)]
pub(crate) struct Usable<'a> {
    /// Its number, for the names of its files.
    pub index: usize,
    pub pem: &'a Certificate,
    /// Names in lower case, exact or `*.example.com`.
    pub names: Vec<String>,
}

/// The certificates of the snapshot, or the one that stands in for them. What can't be used is noted.
pub(crate) fn usable<'a>(plan: &mut Plan<'a>) -> Vec<Usable<'a>> {
    let mut all = Vec::new();
    for (index, pem) in plan.snapshot.certificates.iter().enumerate() {
        let place = format!("certificate {}", index + 1);
        let Some(own) = own_names(pem) else {
            plan.note(Lack::CertificateName, place);
            continue;
        };
        let wanted = if pem.names.is_empty() { own } else { pem.names.clone() };
        let mut names = Vec::new();
        for name in wanted {
            let name = name.to_ascii_lowercase();
            if is_host(name.strip_prefix("*.").unwrap_or(&name)) {
                names.push(name);
            } else {
                plan.note(Lack::CertificateName, format!("{place}, name {name:?}"));
            }
        }
        all.push(Usable { index, pem, names });
    }
    if all.is_empty() {
        let fallback = plan.options.fallback.as_ref();
        all.extend(fallback.map(|pem| Usable { index: 0, pem, names: Vec::new() }));
    }
    all
}

/// The names in the certificate itself; `None` if it or its key is no PEM.
fn own_names(pem: &Certificate) -> Option<Vec<String>> {
    let (_, block) = parse_x509_pem(pem.chain.as_bytes()).ok()?;
    let certificate = block.parse_x509().ok()?;
    let (_, key) = parse_x509_pem(pem.key.as_bytes()).ok()?;
    if !key.label.ends_with("PRIVATE KEY") {
        return None;
    }
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let names = alternatives.map(|extension| &extension.value.general_names);
    let dns = names.into_iter().flatten().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    Some(dns.collect())
}

/// The certificate that is shown for `name` (exact or `*.example.com`): one for exactly this, else for its wildcard,
/// else the first.
pub(crate) fn for_name<'c, 'a>(all: &'c [Usable<'a>], name: &str) -> Option<&'c Usable<'a>> {
    let has = |wanted: &str| all.iter().find(|c| c.names.iter().any(|name| name == wanted));
    let wildcard = || {
        let (_, parent) = name.split_once('.')?;
        has(&format!("*.{parent}"))
    };
    has(name).or_else(wildcard).or_else(|| all.first())
}
