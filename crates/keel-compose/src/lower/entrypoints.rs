//! Where routes are served: the entrypoints that a file defines, and the default ones that its routes use.

use std::collections::{BTreeMap, BTreeSet};

use keel_model::{Entrypoint, EntrypointName, RouteKind, RouteTls, Stack};

use super::Lower;
use crate::diagnostic::{Code, Span, nearest};
use crate::routes::{Draft, Located};
use crate::xkeel::{WEB, WEBSECURE, XTop, default_entrypoint};

/// What routes need of the stack.
#[derive(Default)]
pub(super) struct Needs {
    pub used: BTreeSet<EntrypointName>,
    /// A route was served at `websecure` because nothing else was said.
    pub redirect: bool,
    pub acme: bool,
    pub http_challenge: bool,
}

impl Lower<'_> {
    /// The entrypoints of a route. One that speaks TLS gives the route TLS.
    pub(super) fn served_at(
        &mut self,
        draft: &Draft,
        tls: &mut Option<Located<RouteTls>>,
        top: &XTop,
        needs: &mut Needs,
    ) -> Option<Vec<EntrypointName>> {
        let encrypted = tls.is_some() || draft.kind == RouteKind::Passthrough;
        if draft.entrypoints.is_empty() {
            if draft.kind == RouteKind::Tcp && !encrypted {
                self.error(
                    Code::MissingKey,
                    &draft.span,
                    "connections without TLS need an entrypoint of their own",
                    "define one in the top-level `x-keel.entrypoints`, and name it under `entrypoints`",
                );
                return None;
            }
            needs.redirect |= encrypted;
            let name = if encrypted { WEBSECURE } else { WEB };
            needs.used.insert(name.to_owned());
            return Some(vec![name.to_owned()]);
        }
        let mut names = Vec::new();
        let mut plain = Vec::new();
        for Located { value: name, span } in &draft.entrypoints {
            let Some(entrypoint) = self.entrypoint(name, span, top) else { continue };
            if encrypted && !entrypoint.tls {
                plain.push((name, span));
                continue;
            }
            if entrypoint.tls && !encrypted {
                *tls = Some(Located::new(RouteTls::Any, span));
            }
            needs.used.insert(name.clone());
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        for (name, span) in plain {
            let message = format!("the route is not served at `{name}`, which speaks no TLS");
            if names.is_empty() {
                let help =
                    format!("give the entrypoint `tls: true`, or serve the route at `{WEBSECURE}`");
                self.error(Code::Conflict, span, message, help);
            } else {
                self.warn(span, message);
            }
        }
        (!names.is_empty()).then_some(names)
    }

    fn entrypoint(&mut self, name: &str, span: &Span, top: &XTop) -> Option<Entrypoint> {
        if let Some(entrypoint) = top.entrypoints.get(name) {
            return Some(entrypoint.value.clone());
        }
        if matches!(name, WEB | WEBSECURE) {
            return Some(default_entrypoint(name));
        }
        let known = top.entrypoints.keys().map(String::as_str).chain([WEB, WEBSECURE]);
        let help = nearest(name, known).map_or_else(
            || {
                format!(
                    "define it at the top level: `x-keel: {{entrypoints: {{{name}: \":8080\"}}}}`"
                )
            },
            |near| format!("did you mean `{near}`?"),
        );
        let message = format!("there is no entrypoint `{name}`");
        self.error(Code::UndefinedReference, span, message, help);
        None
    }

    /// The entrypoints of the file, and the default ones that are in use.
    pub(super) fn entrypoints(&mut self, stack: &mut Stack, top: &XTop, mut needs: Needs) {
        let mut all: BTreeMap<EntrypointName, Entrypoint> = BTreeMap::new();
        for (name, entrypoint) in &top.entrypoints {
            if let Some(target) = &entrypoint.value.redirect_to {
                self.check_redirect(name, target, &entrypoint.span, top);
                needs.used.insert(target.clone());
            }
            if let Some(auth) = &entrypoint.value.client_auth {
                self.check_file(&auth.ca, &entrypoint.span);
            }
            all.insert(name.clone(), entrypoint.value.clone());
        }
        for name in [WEB, WEBSECURE] {
            if needs.used.contains(name) && !all.contains_key(name) {
                all.insert(name.to_owned(), default_entrypoint(name));
            }
        }
        // An authority asks at port 80; what else comes there is better off with TLS.
        let wanted = needs.redirect || needs.http_challenge;
        let port = default_entrypoint(WEB).bind.port();
        let own =
            |(name, e): (&String, &Entrypoint)| name != WEB && !e.tls && e.bind.port() == port;
        if wanted && !top.entrypoints.contains_key(WEB) && !all.iter().any(own) {
            let target = all.contains_key(WEBSECURE).then(|| WEBSECURE.to_owned());
            let web = all.entry(WEB.to_owned()).or_insert_with(|| default_entrypoint(WEB));
            web.redirect_to = target;
        } else if needs.redirect && all.contains_key(WEBSECURE) {
            // So it is where their addresses are the file's own.
            if let Some(web) = all.get_mut(WEB).filter(|web| !web.tls) {
                web.redirect_to.get_or_insert_with(|| WEBSECURE.to_owned());
            }
        }
        self.check_binds(&all, top);
        stack.entrypoints = all;
    }

    fn check_redirect(&mut self, name: &str, target: &str, span: &Span, top: &XTop) {
        let Some(entrypoint) = self.entrypoint(target, span, top) else { return };
        if name == target || !entrypoint.tls {
            let message = format!("`{name}` can't redirect to `{target}`, which speaks no TLS");
            self.error(Code::Conflict, span, message, format!("redirect to `{WEBSECURE}`"));
        } else if top.entrypoints.get(name).is_some_and(|own| own.value.tls) {
            let message = format!("`{name}` speaks TLS already; there is nothing to redirect");
            self.error(Code::Conflict, span, message, "remove `redirect_to`");
        }
    }

    fn check_binds(&mut self, all: &BTreeMap<EntrypointName, Entrypoint>, top: &XTop) {
        let mut seen: Vec<(&EntrypointName, &Entrypoint)> = Vec::new();
        for (name, entrypoint) in all {
            let bind = entrypoint.bind;
            let clash = seen.iter().find(|(_, other)| {
                let (a, b) = (other.bind.ip(), bind.ip());
                other.bind.port() == bind.port()
                    && (a == b || a.is_unspecified() || b.is_unspecified())
            });
            if let Some((other, _)) = clash {
                let place = top.entrypoints.get(name).or_else(|| top.entrypoints.get(*other));
                let span = place
                    .map_or_else(|| self.project.model.span.clone(), |place| place.span.clone());
                let message = format!(
                    "the entrypoints `{other}` and `{name}` both want port {}",
                    bind.port()
                );
                let implied =
                    [*other, name].into_iter().find(|n| !top.entrypoints.contains_key(*n));
                let help = implied.map_or_else(
                    || "give one of them another port".to_owned(),
                    |implied| {
                        format!("routes that name no entrypoint are served at `{implied}`: call yours that, or name it at the routes")
                    },
                );
                self.error(Code::Conflict, &span, message, help);
            }
            seen.push((name, entrypoint));
        }
    }
}
