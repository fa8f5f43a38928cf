//! What scripts of other sites are told.

use keel_model::Cors;

use super::Writer;
use super::words::{Directive, clean, in_value, matching, quoted};
use crate::gaps::Lack;
use crate::origin;

impl Writer<'_> {
    pub(super) fn cors(&mut self, cors: &Cors, place: &str, lines: &mut Vec<Directive>) {
        let fields = [&cors.methods, &cors.headers, &cors.expose];
        if fields.into_iter().flatten().any(|item| clean(item).is_none()) {
            return self.plan.note(Lack::ControlCharacter, place);
        }
        let any = cors.origins.iter().any(|origin| origin == "*");
        let origin = self.variable("origin");
        let mut entries = vec![format!("default \"{}\"", if any { "*" } else { "" })];
        for known in cors.origins.iter().filter(|_| !any) {
            entries.push(format!("{} $http_origin", matching(&origin::expression(known))));
        }
        let mut seen = std::collections::BTreeSet::new();
        entries.retain(|entry| seen.insert(entry.clone()));
        self.maps.block(format!("map $http_origin {origin}"), &entries);
        let preflight = self.variable("preflight");
        let asked = "\"$request_method|$http_access_control_request_method|$http_origin\"";
        let entries = ["default 0".to_owned(), matching(r"\AOPTIONS\x7C[^\x7C]+\x7C.") + " 1"];
        self.maps.block(format!("map {asked} {preflight}"), &entries);
        let list = |items: &[String]| {
            let items = items.iter().map(|item| item.trim());
            let items: Vec<&str> = items.filter(|item| !["", "*"].contains(item)).collect();
            in_value(&items.join(", "))
        };
        let mut both = vec![format!("add_header Access-Control-Allow-Origin {origin} always")];
        if cors.credentials {
            both.push(self.for_known(&origin, "Allow-Credentials", "true"));
        }
        let mut before = both.clone();
        let methods = match list(&cors.methods) {
            none if none.is_empty() => "GET, HEAD, POST".to_owned(),
            methods => methods,
        };
        before.push(self.for_known(&origin, "Allow-Methods", &methods));
        let named = list(&cors.headers);
        let headers = match cors.headers.iter().any(|header| header == "*") {
            true => {
                let variable = self.variable("asked");
                let asked = "$http_access_control_request_headers";
                let entries = [format!("\"\" {}", quoted(&named)), format!("default {asked}")];
                self.maps.block(format!("map {asked} {variable}"), &entries);
                variable
            }
            false => named,
        };
        if !headers.is_empty() {
            before.push(self.for_known(&origin, "Allow-Headers", &headers));
        }
        if let Some(age) = cors.max_age {
            before.push(self.for_known(&origin, "Max-Age", &age.as_secs().to_string()));
        }
        let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        before.push(format!("add_header Vary {} always", quoted(vary)));
        before.push("return 204".to_owned());
        let expose = list(&cors.expose);
        if !expose.is_empty() {
            both.push(self.for_known(&origin, "Expose-Headers", &expose));
        }
        if !any {
            both.push("add_header Vary Origin always".to_owned());
        }
        lines.push(Directive::Block(format!("if ({preflight})"), before));
        lines.extend(both.into_iter().map(Directive::Line));
        for name in ["Allow-Origin", "Allow-Credentials", "Expose-Headers"] {
            lines.push(format!("proxy_hide_header Access-Control-{name}").into());
            lines.push(format!("grpc_hide_header Access-Control-{name}").into());
        }
    }

    /// The directive for a field that is only sent to origins that may: one with an empty value is not sent.
    fn for_known(&mut self, origin: &str, name: &str, text: &str) -> String {
        let variable = self.variable("cors");
        let entries = ["\"\" \"\"".to_owned(), format!("default {}", quoted(text))];
        self.maps.block(format!("map {origin} {variable}"), &entries);
        format!("add_header Access-Control-{name} {variable} always")
    }
}
