//! What is for sale: a fixed assortment, with a discount that makes two revisions of this service tell apart by eye.
//!
//! `GET /products` → all; `GET /products/{sku}` → one. No state.

use bytes::Bytes;
use hyper::Method;
use serde::{Deserialize, Serialize};

use crate::http::{Call, Failure, Reply};

/// Something for sale.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Product {
    /// Its name in orders and carts; also names its picture in the page.
    pub sku: String,
    /// Its name for people.
    pub name: String,
    /// One sentence.
    pub blurb: String,
    /// What it costs now.
    pub price_cents: u64,
    /// What it costs without the discount.
    pub list_price_cents: u64,
}

const PRODUCTS: [(&str, &str, u64, &str); 12] = [
    ("lantern", "Storm lantern", 4900, "Galvanised steel, burns twenty hours on one filling."),
    ("compass", "Hand compass", 6800, "Damped needle, sighting mirror, and no batteries."),
    ("rope", "Mooring line, 10 m", 3200, "Three-strand, spliced eye. Holds, then gives a little."),
    ("anchor", "Folding anchor", 5400, "Four flukes, 3.2 kg, stows flat under a thwart."),
    ("mug", "Enamel mug", 1400, "Keeps its heat, survives the drop you will give it."),
    ("hat", "Sou'wester", 3900, "The long brim goes at the back. Yellow, of course."),
    ("bell", "Brass bell", 8800, "For fog, for the watch, and for dinner."),
    ("flags", "Signal flags", 7500, "Twelve cotton flags and a card to read them by."),
    ("buoy", "Ring buoy", 6100, "Closed-cell foam, thirty metres of floating line."),
    ("knife", "Rigging knife", 4600, "Sheepsfoot blade, marlinspike, lanyard hole."),
    ("telescope", "Pocket telescope", 9700, "Eight times nearer. Three draws, leather cap."),
    ("pennant", "Shop pennant", 1900, "Flies from anything taller than you are."),
];

/// The service.
#[derive(Debug)]
pub struct Catalog {
    products: Vec<Product>,
    /// The whole assortment as JSON, written once: this is the busiest answer of the shop.
    page: Bytes,
}

impl Catalog {
    /// The assortment at `sale_percent` off.
    pub fn new(sale_percent: u32) -> Catalog {
        let percent = u64::from(100 - sale_percent.min(100));
        let products: Vec<Product> = PRODUCTS
            .iter()
            .map(|&(sku, name, list_price_cents, blurb)| Product {
                sku: sku.to_owned(),
                name: name.to_owned(),
                blurb: blurb.to_owned(),
                price_cents: list_price_cents * percent / 100,
                list_price_cents,
            })
            .collect();
        let page = Reply::json(&serde_json::json!({ "products": products })).body;
        Catalog { products, page }
    }

    /// Everything for sale.
    #[cfg(test)]
    pub fn products(&self) -> &[Product] {
        &self.products
    }

    /// Answers one request.
    ///
    /// # Errors
    /// 404 for an unknown product or path.
    pub fn answer(&self, call: &Call) -> Result<Reply, Failure> {
        if call.method != Method::GET {
            return Err(Failure::not_found(&call.path));
        }
        if call.path == "/products" {
            return Ok(Reply::bytes("application/json", self.page.clone()));
        }
        call.path
            .strip_prefix("/products/")
            .and_then(|sku| self.products.iter().find(|product| product.sku == sku))
            .map(Reply::json)
            .ok_or_else(|| Failure::not_found(&call.path))
    }
}

/// What `GET /products` answers.
#[derive(Debug, Deserialize)]
pub struct Assortment {
    /// Everything for sale.
    pub products: Vec<Product>,
}
