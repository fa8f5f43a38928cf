//! Who may come in, and how often.

use keel_model::{BasicAuth, ClientKey, RateLimit};

use super::Writer;
use super::filters::Current;
use super::words::format;
use crate::endpoints::millis;
use crate::gaps::Lack;
use crate::rules::is_plain_name;

/// Clients that a rate limit keeps in mind.
const LIMIT_CLIENTS: &str = "100k";
/// Longest time that a rate limit looks back, in milliseconds (20 days).
const LIMIT_PAST: u64 = 20 * 86_400_000;

impl Writer<'_> {
    pub(super) fn basic_auth(&mut self, current: &mut Current<'_, '_>, auth: &BasicAuth) {
        let users = self.user_list(current.route, auth);
        // The realm comes out between double quotes, in which these two have to be escaped (RFC 9110, 5.6.4).
        let realm: String = auth.realm.chars().filter(|c| !c.is_control()).collect();
        let realm = realm.replace('\\', r"\\").replace('"', "\\\"");
        let action = format!("http-request auth realm {}", format(&realm));
        current.request(&action, &format!("!{{ http_auth({users}) }}"));
        match &auth.user_header {
            Some(name) if is_plain_name(name) => {
                current.request(&format!("http-request set-header {name} %[http_auth_user]"), "");
            }
            Some(_) => self.plan.note(Lack::HeaderName, current.place()),
            None => {}
        }
        if auth.remove_header {
            current.request("http-request del-header Authorization", "");
        }
    }

    /// A limit counts what was let through, over the time in which its burst comes back: in the long run that is the
    /// rate, and at once no more than the burst. Whether the limit can be kept.
    pub(super) fn rate_limit(
        &mut self,
        current: &mut Current<'_, '_>,
        index: usize,
        limit: &RateLimit,
    ) -> bool {
        let burst = u64::from(limit.burst.max(1));
        let window = millis(limit.per).saturating_mul(burst) / u64::from(limit.requests.max(1));
        let window = window.clamp(1, LIMIT_PAST);
        let (kind, key) = match &limit.key {
            ClientKey::All => ("integer size 1", "int(1)".to_owned()),
            ClientKey::Source => ("ipv6 size", "src,ipmask(32,64)".to_owned()),
            ClientKey::Header(name) if is_plain_name(name) => {
                ("binary len 20 size", format!("req.fhdr({}),sha1", name.to_lowercase()))
            }
            ClientKey::Cookie(name) if is_plain_name(name) => {
                ("binary len 20 size", format!("req.cook({name}),sha1"))
            }
            ClientKey::Header(_) | ClientKey::Cookie(_) => {
                self.plan.note(Lack::HeaderName, current.place());
                return false;
            }
            ClientKey::Path => ("binary len 20 size", "var(txn.path),sha1".to_owned()),
        };
        let size = if kind.ends_with(" 1") { "" } else { LIMIT_CLIENTS };
        let table = format!("limit{index}_{}", current.route.name);
        if self.written.insert(table.clone()) {
            self.backends.section(&format!("backend {table}"));
            self.backends.line(format!(
                "stick-table type {kind} {size} expire {window}ms store gpc0_rate({window}ms)"
            ));
        }
        current.request(&format!("http-request track-sc{index} {key} table {table}"), "");
        if key.starts_with("req.") {
            // Without the header or cookie it is that of the address; otherwise leaving it out would be a way around.
            let action =
                format!("http-request track-sc{index} src,ipmask(32,64),sha1 table {table}");
            current.request(&action, &format!("!{{ {key} -m found }}"));
        }
        let full = format!("{{ sc_gpc0_rate({index},{table}) ge {burst} }}");
        current.request("http-request deny deny_status 429 hdr Retry-After 1", &full);
        true
    }
}
