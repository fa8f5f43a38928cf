//! Endpoints that drain, proxies that end, proxies that are replaced: what is open is finished.
