//! The short forms of volumes, ports and devices, turned into their long forms.

use crate::diagnostic::Span;
use crate::value::{Map, Node, Value};

/// A volume in short form, as its parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    source: String,
    pub target: String,
    read_only: bool,
    no_copy: bool,
    propagation: Option<String>,
    selinux: Option<String>,
    /// One or two characters: Compose takes them as a bare target and sets no volume options.
    bare: bool,
}

const PROPAGATIONS: [&str; 6] = ["rprivate", "private", "rshared", "shared", "rslave", "slave"];

impl Volume {
    /// Reads `[SOURCE:]TARGET[:OPTIONS]`.
    ///
    /// A drive letter (`C:`) does not end a section, and neither does a colon inside `${…}`, which occurs when
    /// interpolation is off.
    pub fn parse(spec: &str) -> Result<Self, String> {
        match spec.chars().count() {
            0 => return Err("a volume cannot be empty".to_owned()),
            1 | 2 => {
                return Ok(Self { target: spec.to_owned(), bare: true, ..Self::default() });
            }
            _ => {}
        }
        let mut volume = Self::default();
        let sections = sections(spec);
        let last = sections.len() - 1;
        for (at, section) in sections.into_iter().enumerate() {
            if section.is_empty() {
                return Err(format!("`{spec}` has an empty section between colons"));
            }
            if volume.source.is_empty() && at == last {
                volume.target = section;
            } else if volume.source.is_empty() {
                volume.source = section;
            } else if volume.target.is_empty() {
                volume.target = section;
            } else if at < last {
                return Err(format!("`{spec}` has too many colons"));
            } else {
                volume.options(&section);
            }
        }
        Ok(volume)
    }

    fn options(&mut self, text: &str) {
        for option in text.split(',') {
            match option {
                "ro" => self.read_only = true,
                "rw" => self.read_only = false,
                "nocopy" => self.no_copy = true,
                "z" | "Z" => self.selinux = Some(option.to_owned()),
                _ if PROPAGATIONS.contains(&option) => self.propagation = Some(option.to_owned()),
                // Docker ignores other options, `delegated` for example.
                _ => {}
            }
        }
    }

    /// The long form.
    pub fn into_node(self, span: &Span) -> Node {
        let mut map = Map::new();
        let bind = is_host_path(&self.source);
        map.insert("type", Node::string(if bind { "bind" } else { "volume" }, span));
        if !self.source.is_empty() {
            map.insert("source", Node::string(self.source, span));
        }
        let target = clean(&self.target);
        if !target.is_empty() {
            map.insert("target", Node::string(target, span));
        }
        if self.read_only {
            map.insert("read_only", Node::new(Value::Bool(true), span));
        }
        let mut binding = Map::new();
        for (key, value) in [("propagation", self.propagation), ("selinux", self.selinux)] {
            if let Some(value) = value {
                binding.insert(key, Node::string(value, span));
            }
        }
        if bind {
            binding.insert("create_host_path", Node::new(Value::Bool(true), span));
        }
        if bind || !binding.is_empty() {
            map.insert("bind", Node::new(Value::Map(binding), span));
        }
        if self.no_copy || (!bind && !self.bare) {
            let mut volume = Map::new();
            if self.no_copy {
                volume.insert("nocopy", Node::new(Value::Bool(true), span));
            }
            map.insert("volume", Node::new(Value::Map(volume), span));
        }
        Node::new(Value::Map(map), span)
    }
}

fn sections(spec: &str) -> Vec<String> {
    let mut sections = Vec::new();
    let mut current = String::new();
    let mut depth = 0_usize;
    let mut chars = spec.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '$' if chars.peek() == Some(&'{') => {
                depth += 1;
                current.push(c);
            }
            '}' if depth > 0 => {
                depth -= 1;
                current.push(c);
            }
            ':' if depth == 0 && !is_drive(&current) => sections.push(std::mem::take(&mut current)),
            _ => current.push(c),
        }
    }
    sections.push(current);
    sections
}

fn is_drive(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(char::is_alphabetic) && chars.next().is_none()
}

fn is_host_path(source: &str) -> bool {
    source.starts_with(['.', '/', '~'])
        || source.starts_with("\\\\")
        || source.split_once(':').is_some_and(|(drive, _)| is_drive(drive))
}

/// A slash-separated path without `.`, `..` and doubled slashes, as Go's `path.Clean` makes it.
pub(crate) fn clean(path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Reads `[[IP:]PUBLISHED:]TARGET[/PROTOCOL]`, with ranges, into long forms sorted as Docker sorts them.
pub(crate) fn ports(spec: &str, span: &Span) -> Result<Vec<Node>, String> {
    let (address, host, container) = port_sections(spec);
    let mut parts = container.split('/');
    let port = parts.next().unwrap_or_default();
    let protocol = parts.next().filter(|text| !text.is_empty()).unwrap_or("tcp");
    let ip = port_address(address)?;
    if port.is_empty() {
        return Err(format!("`{spec}` names no container port"));
    }
    let (start, end) =
        port_range(port).ok_or_else(|| format!("`{port}` is not a port or a range of ports"))?;
    let published = match host {
        "" => None,
        text => Some(
            port_range(text)
                .ok_or_else(|| format!("`{text}` is not a port or a range of ports"))?,
        ),
    };
    if let Some((from, to)) = published
        && to - from != end - start
        && start != end
    {
        return Err(format!("the ranges `{host}` and `{port}` have different lengths"));
    }
    let lower = protocol.to_lowercase();
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("`{protocol}` is not a protocol; use tcp, udp or sctp"));
    }
    let mut ports: Vec<(String, Node)> = (start..=end)
        .map(|target| {
            let published = published.map(|(from, to)| {
                // A range for one container port is a choice that Docker makes at run time.
                if start == end && from != to {
                    format!("{from}-{to}")
                } else {
                    (from + (target - start)).to_string()
                }
            });
            let node = port_node(target, published, &ip, &lower, span);
            (format!("{target}/{lower}"), node)
        })
        .collect();
    ports.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(ports.into_iter().map(|(_, node)| node).collect())
}

fn port_sections(spec: &str) -> (&str, &str, &str) {
    let Some((rest, container)) = spec.rsplit_once(':') else { return ("", "", spec) };
    match rest.rsplit_once(':') {
        Some((address, host)) => (address, host, container),
        None => ("", rest, container),
    }
}

fn port_address(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let bracketed = bare.len() != text.len();
    if bare.is_empty() && !bracketed {
        return Ok(String::new());
    }
    // Without brackets an address with colons is ambiguous, and Docker refuses it.
    if !is_ip(bare) || (bare.contains(':') && !bracketed) {
        return Err(format!("`{text}` is not an IP address"));
    }
    Ok(bare.to_owned())
}

/// Whether a text is an IP address.
pub(crate) fn is_ip(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

fn port_range(text: &str) -> Option<(u32, u32)> {
    let number = |part: &str| {
        part.parse::<u16>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit())).map(u32::from)
    };
    let mut parts = text.split('-');
    let start = number(parts.next()?)?;
    let end = match parts.next() {
        Some(part) => number(part)?,
        None => start,
    };
    (start <= end).then_some((start, end))
}

fn port_node(
    target: u32,
    published: Option<String>,
    ip: &str,
    protocol: &str,
    span: &Span,
) -> Node {
    let mut map = Map::new();
    map.insert("mode", Node::string("ingress", span));
    if !ip.is_empty() {
        map.insert("host_ip", Node::string(ip, span));
    }
    if target != 0 {
        map.insert("target", Node::new(Value::Int(i64::from(target)), span));
    }
    if let Some(published) = published {
        map.insert("published", Node::string(published, span));
    }
    map.insert("protocol", Node::string(protocol, span));
    Node::new(Value::Map(map), span)
}

/// Reads `SOURCE[:TARGET[:PERMISSIONS]]`.
pub(crate) fn device(spec: &str, span: &Span) -> Result<Node, String> {
    let parts: Vec<&str> = spec.split(':').collect();
    let (source, target, permissions) = match parts[..] {
        [source] => (source, source, "rwm"),
        [source, target] => (source, target, "rwm"),
        [source, target, permissions] => (source, target, permissions),
        _ => return Err(format!("`{spec}` has too many colons; use the long form")),
    };
    let target = if target.is_empty() { source } else { target };
    let mut map = Map::new();
    for (key, value) in [("source", source), ("target", target), ("permissions", permissions)] {
        map.insert(key, Node::string(value, span));
    }
    Ok(Node::new(Value::Map(map), span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let volume = Volume::parse("./a:/b/../c:ro,z,rshared").unwrap();
        assert_eq!((volume.source.as_str(), volume.target.as_str()), ("./a", "/b/../c"));
        assert!(volume.read_only);
        let drive = Volume::parse("C:\\data:/data").unwrap();
        assert_eq!(drive.source, "C:\\data");
        assert_eq!(Volume::parse("/x").unwrap().target, "/x");
        for bad in ["", "aa::/b", "aa:/b:cc:dd", ":/b/c"] {
            assert!(Volume::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_go_cleans_them() {
        for (path, expected) in
            [("/a/../b", "/b"), ("/..", "/"), ("a/..", "."), ("../a//b/.", "../a/b"), ("/", "/")]
        {
            assert_eq!(clean(path), expected);
        }
    }

    #[test]
    fn port_errors() {
        let span = Span::start_of("f");
        for bad in ["", "80/", "x", "1.2.3:80:80", "80-82:90-91", "99999", "80/foo", "5-3"] {
            assert_eq!(ports(bad, &span).is_err(), bad != "80/", "{bad}");
        }
        assert_eq!(ports("[::1]:8080-8081:80-81/udp", &span).unwrap().len(), 2);
        assert_eq!(ports("8000-9000:80", &span).unwrap().len(), 1);
    }
}
