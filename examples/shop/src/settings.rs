//! What a service is told from outside: its role, address, name and the addresses of the others.
//!
//! Reads the environment through a function, so that it can be tested; opens nothing. A value that can't be used is an
//! error that names the variable, never a silent default.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::client::Url;
use crate::knobs::Knobs;

/// Which of the five services this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The web page and the public API.
    Storefront,
    /// What is for sale.
    Catalog,
    /// What a customer picked.
    Cart,
    /// What customers bought.
    Orders,
    /// Takes the (pretend) money.
    Payments,
}

impl Role {
    const ALL: [Role; 5] =
        [Role::Storefront, Role::Catalog, Role::Cart, Role::Orders, Role::Payments];

    /// The service's name, as in the compose file.
    pub fn name(self) -> &'static str {
        match self {
            Role::Storefront => "storefront",
            Role::Catalog => "catalog",
            Role::Cart => "cart",
            Role::Orders => "orders",
            Role::Payments => "payments",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Role::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| format!("there is no service or command '{text}'"))
    }
}

/// Everything a service needs to start.
#[derive(Debug)]
pub struct Settings {
    /// Which service.
    pub role: Role,
    /// Port to listen on, all addresses; 0 lets the system choose.
    pub port: u16,
    /// This instance's name, shown to callers in `X-Instance`.
    pub instance: String,
    /// This instance's version, shown to callers in `X-Revision`.
    pub revision: String,
    /// Where the other services are.
    pub peers: Peers,
    /// Folder for the orders file.
    pub data_dir: PathBuf,
    /// Key for cart tokens; equal on all replicas of `cart`.
    pub cart_secret: String,
    /// Discount on everything, in percent; a visible difference between two revisions of `catalog`.
    pub sale_percent: u32,
    /// Failures to start with.
    pub knobs: Knobs,
}

/// Addresses of the other services.
#[derive(Debug, Clone)]
pub struct Peers {
    /// `CATALOG_URL`, default `http://catalog`.
    pub catalog: Url,
    /// `CART_URL`, default `http://cart`.
    pub cart: Url,
    /// `ORDERS_URL`, default `http://orders`.
    pub orders: Url,
    /// `PAYMENTS_URL`, default `http://payments`.
    pub payments: Url,
}

/// An environment variable that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{name}={value} can't be used: {why}")]
pub struct Error {
    name: String,
    value: String,
    why: String,
}

impl Settings {
    /// Reads the settings of `role` through `env`.
    ///
    /// # Errors
    /// Names the first variable whose value can't be used.
    pub fn from_env(
        role: Role,
        env: impl Fn(&str) -> Option<String> + Copy,
    ) -> Result<Self, Error> {
        let text = |name: &str| env(name).filter(|value| !value.is_empty());
        let knobs = Knobs::from_env(text).map_err(|(name, value, why)| Error {
            name: name.to_owned(),
            value,
            why,
        })?;
        Ok(Settings {
            role,
            port: parsed(text, "PORT", "0")?,
            instance: text("KEEL_INSTANCE")
                .unwrap_or_else(|| format!("{role}-{}", std::process::id())),
            revision: text("SHOP_VERSION")
                .or_else(|| text("KEEL_REVISION"))
                .unwrap_or_else(|| "v1".to_owned()),
            peers: Peers {
                catalog: parsed(text, "CATALOG_URL", "http://catalog")?,
                cart: parsed(text, "CART_URL", "http://cart")?,
                orders: parsed(text, "ORDERS_URL", "http://orders")?,
                payments: parsed(text, "PAYMENTS_URL", "http://payments")?,
            },
            data_dir: text("DATA_DIR").unwrap_or_else(|| ".".to_owned()).into(),
            cart_secret: text("CART_SECRET").unwrap_or_else(|| "for demonstration".to_owned()),
            sale_percent: parsed::<u32>(text, "SHOP_SALE_PERCENT", "0")?.min(90),
            knobs,
        })
    }
}

fn parsed<T: FromStr>(
    env: impl Fn(&str) -> Option<String>,
    name: &str,
    default: &str,
) -> Result<T, Error>
where
    T::Err: fmt::Display,
{
    let value = env(name).unwrap_or_else(|| default.to_owned());
    value.parse().map_err(|why: T::Err| Error {
        name: name.to_owned(),
        value: value.clone(),
        why: why.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_need_no_environment() {
        let settings = Settings::from_env(Role::Cart, |_| None).unwrap();
        assert_eq!(settings.port, 0);
        assert_eq!(settings.peers.catalog.authority(), "catalog:80");
        assert!(settings.instance.starts_with("cart-"));
        assert_eq!(settings.revision, "v1");
    }

    #[test]
    fn the_platform_names_instance_and_revision() {
        let settings = Settings::from_env(Role::Cart, |name| match name {
            "KEEL_INSTANCE" => Some("shop-cart-2".into()),
            "KEEL_REVISION" => Some("a1b2c3".into()),
            "PORT" => Some("8123".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!((settings.port, settings.instance.as_str()), (8123, "shop-cart-2"));
        assert_eq!(settings.revision, "a1b2c3");
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        let error = Settings::from_env(Role::Cart, |name| {
            (name == "ORDERS_URL").then(|| "https://orders".into())
        })
        .unwrap_err();
        assert!(
            error.to_string().starts_with("ORDERS_URL=https://orders can't be used"),
            "{error}"
        );
    }
}
