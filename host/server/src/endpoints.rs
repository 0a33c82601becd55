//! What can be asked for about a cluster's endpoints while it serves, as the command line says it
//! and the admin interface hears it.

use std::net::{IpAddr, SocketAddr};

use pointsman_core::ClusterId;
use serde::{Deserialize, Serialize};

use crate::service::Service;
use crate::status::{self, Endpoint};
use crate::world::EndpointChange;

/// The most endpoints of one request: the thread that changes them does nothing else meanwhile.
const ADDRESSES_MAX: usize = 1_000;

/// A request about some endpoints of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Which.
    pub addresses: Vec<String>,
    /// Their share relative to the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Whether they are to be used only where no other is available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<bool>,
    /// Flows each may have at a time; 0 if that is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_flows: Option<u32>,
    /// Whether they get nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
}

/// What is to be done with the endpoints of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// They come to serve.
    Add,
    /// They serve otherwise.
    Set,
    /// They go.
    Remove,
}

/// The endpoints of a cluster as they are now.
pub fn list(service: &Service, cluster: ClusterId) -> Vec<Endpoint> {
    let (snapshot, mut leaving) = service.look(|world| (world.snapshot(), world.leaving()));
    let leaving = leaving.swap_remove(cluster.index());
    status::endpoints(&snapshot.clusters[cluster.index()].endpoints, &leaving)
}

/// Does what a request asks for, with all of its endpoints or with none.
///
/// # Errors
/// Everything that speaks against it.
pub fn change(
    service: &Service,
    cluster: ClusterId,
    verb: Verb,
    request: &Request,
) -> Result<(), Vec<String>> {
    let change = request.change(verb).map_err(|problem| vec![problem.to_owned()])?;
    let addresses = request.addresses()?;
    service.try_change(|world| world.change_endpoints(cluster, &addresses, change))
}

impl Request {
    fn change(&self, verb: Verb) -> Result<EndpointChange, &'static str> {
        let Self { weight, backup, max_flows, draining, .. } = *self;
        let is_plain = weight.is_none() && max_flows.is_none() && draining.is_none();
        match verb {
            Verb::Add if draining.is_some() => {
                Err("draining: an endpoint is added first; drain it then")
            }
            Verb::Add => Ok(EndpointChange::Add {
                weight: weight.unwrap_or(1),
                backup: backup.unwrap_or(false),
                flows_max: max_flows.unwrap_or(0),
            }),
            Verb::Set if backup.is_some() => {
                Err("backup: it stays what it is; remove the endpoint and add it again")
            }
            Verb::Set if is_plain => {
                Err("there is nothing to change; set weight, max_flows or draining")
            }
            Verb::Set => Ok(EndpointChange::Set { weight, flows_max: max_flows, draining }),
            Verb::Remove if is_plain && backup.is_none() => Ok(EndpointChange::Remove),
            Verb::Remove => Err("an endpoint that is removed has no keys; leave all but addresses"),
        }
    }

    fn addresses(&self) -> Result<Vec<SocketAddr>, Vec<String>> {
        if self.addresses.is_empty() {
            return Err(vec!["addresses: there is none; name at least one endpoint".to_owned()]);
        }
        if self.addresses.len() > ADDRESSES_MAX {
            let count = self.addresses.len();
            return Err(vec![format!(
                "addresses: there are {count}; send at most {ADDRESSES_MAX}"
            )]);
        }
        let parsed: Vec<_> = self.addresses.iter().map(|text| address(text)).collect();
        if parsed.iter().any(Result::is_err) {
            return Err(parsed.into_iter().filter_map(Result::err).collect());
        }
        Ok(parsed.into_iter().flatten().collect())
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let advice = if text.parse::<IpAddr>().is_ok() {
            "add a port, such as \":8080\", and put an IPv6 address in brackets"
        } else {
            "write address:port (names are not resolved)"
        };
        format!("\"{text}\" is no address; {advice}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        serde_json::from_str(text).expect("a request")
    }

    #[test]
    fn what_means_nothing_for_a_verb_is_refused_with_what_to_do() {
        let of = |verb, more: &str| request(&format!("{{\"addresses\": []{more}}}")).change(verb);
        let added = EndpointChange::Add { weight: 1, backup: false, flows_max: 0 };
        assert_eq!(of(Verb::Add, ""), Ok(added));
        assert_eq!(of(Verb::Remove, ""), Ok(EndpointChange::Remove));
        let draining = Some(true);
        let set = EndpointChange::Set { weight: Some(3), flows_max: None, draining };
        assert_eq!(of(Verb::Set, ", \"weight\": 3, \"draining\": true"), Ok(set));
        let set = EndpointChange::Set { weight: None, flows_max: Some(5), draining: None };
        assert_eq!(of(Verb::Set, ", \"max_flows\": 5"), Ok(set));
        for (verb, more, expected) in [
            (Verb::Add, ", \"draining\": true", "drain it then"),
            (Verb::Set, ", \"backup\": true", "remove the endpoint and add it again"),
            (Verb::Set, "", "set weight, max_flows or draining"),
            (Verb::Remove, ", \"weight\": 1", "leave all but addresses"),
        ] {
            assert!(of(verb, more).expect_err(more).ends_with(expected), "{more}");
        }
    }

    #[test]
    fn every_address_that_is_none_is_told() {
        let wrong = request("{\"addresses\": [\"10.0.0.1\", \"10.0.0.1:80\", \"web:80\"]}");
        let problems = wrong.addresses().expect_err("two are wrong");
        assert_eq!(problems.len(), 2);
        assert!(problems[0].contains("add a port"), "{}", problems[0]);
        assert!(problems[1].contains("names are not resolved"), "{}", problems[1]);
        assert!(request("{\"addresses\": []}").addresses().is_err());
        let many = Request { addresses: vec!["10.0.0.1:80".to_owned(); 1_001], ..wrong };
        assert!(many.addresses().expect_err("too many")[0].ends_with("send at most 1000"));
    }
}
