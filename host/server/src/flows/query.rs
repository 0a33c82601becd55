//! Which flows are asked for, as text: arguments of the command line, and the query of a request.

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::problem::suggestion;

/// What to look for, and how much of it. Nothing is looked up here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Query {
    /// Only flows of this listener.
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
    /// Only what this cluster serves.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Only what is bound to this endpoint; without a port, to any of this address.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub endpoint: Option<String>,
    /// Only what belongs to this client, or to this network of clients.
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    pub client: Option<String>,
    /// Only flows of tcp, or of udp.
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<String>,
    /// Only flows (flow), or only kept decisions (kept).
    #[arg(long, value_name = "KIND")]
    pub kind: Option<String>,
    /// Only flows in this state: prereading, queued, unconfirmed, established, denied or closing.
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,
    /// How many at most [default: 100].
    #[arg(long, value_name = "N")]
    pub limit: Option<String>,
    /// Where to begin: what the page before gave as the next one.
    #[arg(long, value_name = "TOKEN")]
    pub page: Option<String>,
}

impl Query {
    const NAMES: [&str; 9] =
        ["listener", "cluster", "endpoint", "client", "protocol", "kind", "state", "limit", "page"];

    /// As the query of a request.
    pub fn to_text(&self) -> String {
        let given = Self::NAMES.into_iter().zip(self.values());
        let pairs = given.filter_map(|(name, value)| {
            Some(format!("{name}={}", utf8_percent_encode(value.as_deref()?, NON_ALPHANUMERIC)))
        });
        pairs.collect::<Vec<_>>().join("&")
    }

    /// Reads the query of a request.
    ///
    /// # Errors
    /// One line that says what is wrong with it.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = query.slot(name).ok_or_else(|| {
                format!("flows cannot be asked for by \"{name}\"{}", {
                    suggestion(name, Self::NAMES)
                })
            })?;
            let value = percent_decode_str(value).decode_utf8();
            *slot = Some(value.map_err(|_| format!("{name} is not UTF-8 text"))?.into_owned());
        }
        Ok(query)
    }

    const fn values(&self) -> [&Option<String>; 9] {
        [
            &self.listener,
            &self.cluster,
            &self.endpoint,
            &self.client,
            &self.protocol,
            &self.kind,
            &self.state,
            &self.limit,
            &self.page,
        ]
    }

    fn slot(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            "listener" => &mut self.listener,
            "cluster" => &mut self.cluster,
            "endpoint" => &mut self.endpoint,
            "client" => &mut self.client,
            "protocol" => &mut self.protocol,
            "kind" => &mut self.kind,
            "state" => &mut self.state,
            "limit" => &mut self.limit,
            "page" => &mut self.page,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_survives_its_way_through_text() {
        let text = |text: &str| Some(text.to_owned());
        let query = Query {
            listener: text("a & b=\"c\" ü"),
            endpoint: text("[2001:db8::1]:80"),
            client: text("10.0.0.0/8"),
            limit: text("5"),
            ..Query::default()
        };
        assert_eq!(Query::from_text(&query.to_text()), Ok(query));
        assert_eq!(Query::from_text(""), Ok(Query::default()));
    }

    #[test]
    fn a_filter_that_does_not_exist_is_refused_with_a_suggestion() {
        let error = Query::from_text("clutser=web").expect_err("no such filter");
        assert_eq!(error, "flows cannot be asked for by \"clutser\"; did you mean \"cluster\"?");
    }
}
