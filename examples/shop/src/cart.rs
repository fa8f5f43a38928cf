//! What a customer picked. `POST /cart {token, sku?, add?, quantity?}` and `GET /cart?token=…` → the priced cart and
//! its new token. A pure function of token and request, but for the prices, which come from `catalog`.

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::catalog::Assortment;
use crate::client::{Message, Target, Url};
use crate::http::{Call, Failure, Reply, Trail, form_value};
use crate::token::{self, MAX_LINES, MAX_QUANTITY};

/// The service.
#[derive(Debug)]
pub struct Cart {
    secret: String,
    catalog: Target,
}

/// A change to a cart.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Change {
    /// The cart to change.
    pub token: String,
    /// Which product; none: only read.
    pub sku: Option<String>,
    /// How many more.
    pub add: Option<u32>,
    /// How many, instead of `add`; 0 takes the product out.
    pub quantity: Option<u32>,
}

/// A cart with prices.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Priced {
    /// The cart, to be held by the customer.
    pub token: String,
    /// What is in it.
    pub lines: Vec<Line>,
    /// Pieces.
    pub count: u32,
    /// Price of all.
    pub total_cents: u64,
}

/// One product in a cart or order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// Which.
    pub sku: String,
    /// Its name for people.
    pub name: String,
    /// How many.
    pub quantity: u32,
    /// Price of one.
    pub price_cents: u64,
}

impl Cart {
    /// A cart service that signs with `secret`.
    pub fn new(secret: String, catalog: Url) -> Cart {
        Cart { secret, catalog: Target::new("catalog", catalog) }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// 404 for an unknown product, 422 for a cart that grows too large, or what `catalog` failed with.
    pub async fn answer(&self, call: &Call) -> Result<Reply, Failure> {
        let change = match (call.method.clone(), call.path.as_str()) {
            (Method::GET, "/cart") => Change {
                token: form_value(&call.query, "token").unwrap_or_default(),
                ..Change::default()
            },
            (Method::POST, "/cart") => call.json()?,
            _ => return Err(Failure::not_found(&call.path)),
        };
        let mut contents = token::decode(&change.token, &self.secret).unwrap_or_default();
        if contents.is_empty() && change.sku.is_none() {
            return Ok(Reply::json(&Priced::default()));
        }
        let mut trail = Trail::default();
        let assortment = self.catalog.ask(Message::get("/products"), &mut trail).await?;
        let assortment: Assortment = serde_json::from_slice(&assortment).map_err(|error| {
            Failure::new(StatusCode::BAD_GATEWAY, format!("catalog sent something odd: {error}"))
        })?;
        if let Some(sku) = change.sku {
            if !assortment.products.iter().any(|product| product.sku == sku) {
                return Err(Failure::new(StatusCode::NOT_FOUND, format!("we don't sell '{sku}'")));
            }
            set_quantity(&mut contents, &sku, change.quantity, change.add)?;
        }
        // A product that is no longer sold silently leaves the cart: it can't be bought.
        let lines: Vec<Line> = assortment
            .products
            .into_iter()
            .filter_map(|product| {
                let quantity = *contents.get(&product.sku)?;
                let (sku, name, price_cents) = (product.sku, product.name, product.price_cents);
                Some(Line { sku, name, quantity, price_cents })
            })
            .collect();
        let priced = Priced {
            token: token::encode(&contents, &self.secret),
            count: lines.iter().map(|line| line.quantity).sum(),
            total_cents: lines.iter().map(|line| line.price_cents * u64::from(line.quantity)).sum(),
            lines,
        };
        Ok(Reply::json(&priced).trail(trail))
    }
}

fn set_quantity(
    contents: &mut token::Contents,
    sku: &str,
    quantity: Option<u32>,
    add: Option<u32>,
) -> Result<(), Failure> {
    let now = contents.get(sku).copied().unwrap_or(0);
    let wanted = quantity.unwrap_or_else(|| now.saturating_add(add.unwrap_or(1)));
    let refuse = |why: String| Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, why));
    if wanted > MAX_QUANTITY {
        return refuse(format!("at most {MAX_QUANTITY} of one product, please"));
    }
    if wanted == 0 {
        contents.remove(sku);
    } else if now == 0 && contents.len() >= MAX_LINES {
        return refuse(format!("at most {MAX_LINES} different products, please"));
    } else {
        contents.insert(sku.to_owned(), wanted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_add_set_and_stay_in_bounds() {
        let mut contents = token::Contents::new();
        set_quantity(&mut contents, "mug", None, None).unwrap();
        set_quantity(&mut contents, "mug", None, Some(2)).unwrap();
        assert_eq!(contents["mug"], 3);
        set_quantity(&mut contents, "mug", Some(7), None).unwrap();
        assert_eq!(contents["mug"], 7);
        assert!(set_quantity(&mut contents, "mug", None, Some(93)).is_err());
        assert!(set_quantity(&mut contents, "mug", None, Some(u32::MAX)).is_err());
        set_quantity(&mut contents, "mug", Some(0), None).unwrap();
        assert!(contents.is_empty());
    }
}
