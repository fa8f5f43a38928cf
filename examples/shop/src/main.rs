//! A small shop of five services in one binary: `shop storefront`, `catalog`, `cart`, `orders`, `payments`, and two
//! tools, `shop check` (a health check that needs no curl) and `shop load` (a bounded load generator).
//!
//! This module reads the command line and the environment and starts one of them. The services share `server` (listen,
//! knobs, graceful stop) and `client` (pooled calls); each service module holds only its own requests and answers.
//! Nothing here knows the platform: everything arrives through `PORT`, `*_URL` and the other variables of `settings`.

mod cart;
mod catalog;
mod check;
mod client;
mod http;
mod knobs;
mod ledger;
mod load;
mod orders;
mod payments;
mod render;
mod server;
mod settings;
mod storefront;
mod token;

use std::process::ExitCode;

use settings::Role;

const USAGE: &str = "\
A small shop, made of services that fail on request.

Usage: shop SERVICE            storefront | catalog | cart | orders | payments
       shop check URL          exit 0 if URL answers 2xx within 2 s, 1 if not
       shop load URL [FLAGS]   send requests, print one JSON object, exit 1 if any failed
       shop load --help        the flags of load

Services read PORT (0 = any), KEEL_INSTANCE, SHOP_VERSION, CATALOG_URL, CART_URL,
ORDERS_URL, PAYMENTS_URL, DATA_DIR (orders), CART_SECRET (cart), SHOP_SALE_PERCENT
(catalog), and for failures SHOP_LATENCY_MS, SHOP_JITTER_MS, SHOP_ERROR_RATE,
SHOP_CRASH, SHOP_CRASH_AFTER, SHOP_MEMORY_MB, SHOP_HANG, SHOP_UNHEALTHY,
SHOP_START_DELAY_MS. All but the last can be changed by POST /knobs.";

/// Exit code for a command line or environment that can't be used.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["check", url] => check::run(url),
        ["load", rest @ ..] => load::run(rest),
        ["--help" | "-h" | "help"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        ["--version" | "-V"] => {
            println!("shop {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        [service] => match service.parse::<Role>() {
            Ok(role) => serve(role),
            Err(message) => usage_error(&message),
        },
        [] => usage_error("which service?"),
        [_, extra, ..] => usage_error(&format!("one argument too many: {extra}")),
    }
}

fn usage_error(message: &str) -> ExitCode {
    eprintln!("shop: {message}\n\n{USAGE}");
    ExitCode::from(EXIT_USAGE)
}

fn serve(role: Role) -> ExitCode {
    let settings = match settings::Settings::from_env(role, |name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("shop {role}: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match server::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop {role}: {error}");
            ExitCode::FAILURE
        }
    }
}
