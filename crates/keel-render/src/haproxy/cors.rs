//! What scripts of other sites are told.

use keel_model::Cors;

use super::Writer;
use super::filters::Current;
use super::words::{clean, in_format, word};
use crate::gaps::Lack;
use crate::origin;

impl Writer<'_> {
    /// The ACL that holds for origins that may.
    fn origins(&mut self, current: &mut Current<'_, '_>, cors: &Cors) -> String {
        let allowed = current.acl("origin");
        let mut tests: Vec<String> = Vec::new();
        for origin in &cors.origins {
            tests.push(match origin.as_str() {
                "*" => "always_true".to_owned(),
                origin => {
                    format!("req.fhdr(origin) -m reg -- {}", word(&origin::expression(origin)))
                }
            });
        }
        if tests.is_empty() {
            tests.push("always_false".to_owned());
        }
        current.rules.acls.extend(tests.iter().map(|test| format!("acl {allowed} {test}")));
        allowed
    }

    pub(super) fn cors(&mut self, current: &mut Current<'_, '_>, cors: &Cors) {
        let any = cors.origins.iter().any(|origin| origin == "*");
        let allowed = self.origins(current, cors);
        let list = |items: &[String]| {
            let items = items.iter().map(|item| item.trim());
            let items: Vec<&str> = items.filter(|item| !["", "*"].contains(item)).collect();
            in_format(&items.join(", "))
        };
        let fields = [&cors.methods, &cors.headers, &cors.expose];
        if fields.into_iter().flatten().any(|item| clean(item).is_none()) {
            return self.plan.note(Lack::ControlCharacter, current.place());
        }
        let origin = if any { "*" } else { "%[var(txn.origin)]" };
        let value = if any { "str(*)" } else { "req.fhdr(origin)" };
        current.request(&format!("http-request set-var(txn.origin) {value}"), &allowed);
        self.preflight(current, cors, &allowed, &list);
        for name in ["Allow-Origin", "Allow-Credentials", "Expose-Headers"] {
            current.response(&format!("http-response del-header Access-Control-{name}"), "");
        }
        // On answers of our own too, so that scripts can read why they were refused.
        let known = "{ var(txn.origin) -m found }";
        let mut set = |name: &str, value: &str| {
            let value = word(value);
            let action = format!("http-after-response set-header Access-Control-{name} {value}");
            current.response(&action, known);
        };
        set("Allow-Origin", origin);
        if cors.credentials {
            set("Allow-Credentials", "true");
        }
        let expose = list(&cors.expose);
        if !expose.is_empty() {
            set("Expose-Headers", &expose);
        }
        if !any {
            current.response("http-response add-header Vary Origin", "");
        }
    }

    fn preflight(
        &mut self,
        current: &mut Current<'_, '_>,
        cors: &Cors,
        allowed: &str,
        list: &dyn Fn(&[String]) -> String,
    ) {
        let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        let refusal = format!("http-request return status 204 hdr Vary {}", word(vary));
        let mut answer = refusal.clone();
        let mut add = |name: &str, value: &str| {
            if !value.is_empty() {
                answer.push_str(&format!(" hdr Access-Control-{name} {}", word(value)));
            }
        };
        match list(&cors.methods) {
            none if none.is_empty() => add("Allow-Methods", "GET, HEAD, POST"),
            methods => add("Allow-Methods", &methods),
        }
        if let Some(age) = cors.max_age {
            add("Max-Age", &age.as_secs().to_string());
        }
        let named = list(&cors.headers);
        let mut echo = answer.clone();
        echo.push_str(
            " hdr Access-Control-Allow-Headers %[req.fhdr(access-control-request-headers)]",
        );
        if !named.is_empty() {
            answer.push_str(&format!(" hdr Access-Control-Allow-Headers {}", word(&named)));
        }
        let asks = "METH_OPTIONS { req.fhdr(access-control-request-method) -m found } { req.fhdr(origin) -m found }";
        if cors.headers.iter().any(|header| header == "*") {
            let names = "{ req.fhdr(access-control-request-headers) -m found }";
            current.request(&echo, &format!("{asks} {allowed} {names}"));
        }
        current.request(&answer, &format!("{asks} {allowed}"));
        // One from elsewhere is told nothing, which is a no.
        current.request(&refusal, &format!("{asks} !{allowed}"));
    }
}
