//! The middleware `headers`: custom headers, those of the CORS protocol, and those that secure browsers.

use std::time::Duration;

use keel_model::{Cors, HeaderEdits};

use super::Labels;
use super::entry::Entry;
use super::middleware::{Options, Step};
use crate::diagnostic::Code;
use crate::xkeel::access::check_origin;
use crate::xkeel::filters::is_header_value;

/// Options that set a header of the answer to their value.
const VALUES: [(&str, &str); 7] = [
    ("customframeoptionsvalue", "X-Frame-Options"),
    ("custombrowserxssvalue", "X-XSS-Protection"),
    ("contentsecuritypolicy", "Content-Security-Policy"),
    ("contentsecuritypolicyreportonly", "Content-Security-Policy-Report-Only"),
    ("referrerpolicy", "Referrer-Policy"),
    ("permissionspolicy", "Permissions-Policy"),
    ("featurepolicy", "Feature-Policy"),
];
/// Flags that set a header of the answer, unless one of [`VALUES`] does.
const FLAGS: [(&str, &str, &str); 3] = [
    ("framedeny", "X-Frame-Options", "DENY"),
    ("contenttypenosniff", "X-Content-Type-Options", "nosniff"),
    ("browserxssfilter", "X-XSS-Protection", "1; mode=block"),
];

impl Labels<'_> {
    pub(super) fn headers(&mut self, options: &Options<'_>) -> Option<Step> {
        let mut request = HeaderEdits::default();
        let mut response = HeaderEdits::default();
        for (name, entry) in &options.options {
            if let Some(header) = name.strip_prefix("customrequestheaders.") {
                self.custom(header, entry, &mut request);
            } else if let Some(header) = name.strip_prefix("customresponseheaders.") {
                self.custom(header, entry, &mut response);
            }
        }
        for (flag, header, value) in FLAGS {
            if self.flag(options, flag)? {
                response.set.insert(header.to_owned(), value.to_owned());
            }
        }
        for (option, header) in VALUES {
            if let Some(value) = options.text(option) {
                response.set.insert(header.to_owned(), value.to_owned());
            }
        }
        if let Some(entry) = options.get("stsseconds") {
            let seconds = self.reader.number(&entry.value, 0, i64::from(u32::MAX))?;
            let mut value = format!("max-age={seconds}");
            if self.flag(options, "stsincludesubdomains")? {
                value.push_str("; includeSubDomains");
            }
            if self.flag(options, "stspreload")? {
                value.push_str("; preload");
            }
            if seconds > 0 {
                response.set.insert("Strict-Transport-Security".to_owned(), value);
            }
        }
        let cors = self.cors(options)?;
        Some(Step::Headers { request, response, cors })
    }

    /// A header with a value is set; one without is taken away.
    fn custom(&mut self, header: &str, entry: &Entry, edits: &mut HeaderEdits) {
        let Some(name) = self.reader.edited(header, &entry.key_place) else { return };
        let value = entry.text();
        if value.is_empty() {
            edits.remove.push(name);
        } else if is_header_value(value) {
            edits.set.insert(name, value.to_owned());
        } else {
            self.reader.wrong(&entry.value, "the value of a header", "");
        }
    }

    /// `Some(None)` when the middleware says nothing of other sites.
    #[expect(clippy::option_option, reason = "the outer one stands for a mistake")]
    fn cors(&mut self, options: &Options<'_>) -> Option<Option<Cors>> {
        let texts = |name: &str| -> Vec<String> {
            let list = options.get(name).map(Entry::list).unwrap_or_default();
            list.iter().filter_map(|node| node.as_str().map(str::to_owned)).collect()
        };
        let mut cors = Cors {
            methods: texts("accesscontrolallowmethods"),
            headers: texts("accesscontrolallowheaders"),
            expose: texts("accesscontrolexposeheaders"),
            credentials: self.flag(options, "accesscontrolallowcredentials")?,
            ..Cors::default()
        };
        if let Some(entry) = options.get("accesscontrolmaxage") {
            let seconds = self.reader.number(&entry.value, 0, i64::from(u32::MAX))?;
            cors.max_age = u64::try_from(seconds).ok().map(Duration::from_secs);
        }
        for option in ["accesscontrolalloworiginlist", "accesscontrolalloworigin"] {
            for node in options.get(option).map(Entry::list).unwrap_or_default() {
                let origin = node.as_str().unwrap_or_default();
                match check_origin(origin) {
                    Ok(()) => cors.origins.push(origin.to_ascii_lowercase()),
                    Err(message) => {
                        self.reader.error(Code::InvalidValue, &node.span, message);
                    }
                }
            }
        }
        if cors == Cors::default() {
            return Some(None);
        }
        if cors.origins.is_empty() {
            let message =
                "the middleware allows no origin, so its `accesscontrol…` options do nothing";
            self.reader
                .error(Code::MissingKey, &options.place.key_place, message.to_owned())
                .help = Some("add `accesscontrolalloworiginlist`".to_owned());
            return None;
        }
        if cors.credentials && cors.origins.iter().any(|origin| origin == "*") {
            let message =
                "credentials together with the origin `*` would open the service to every site";
            self.reader.error(Code::Conflict, &options.place.key_place, message.to_owned()).help =
                Some("name the origins".to_owned());
            return None;
        }
        Some(Some(cors))
    }
}
