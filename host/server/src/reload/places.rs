//! Gives what a new plan names the places that it had in the old one.
//!
//! Workers, flows and counts name listeners, clusters and plugins by their places. Whoever is the same
//! in both plans keeps his; who is new gets one that is free, or another; who is gone keeps his too,
//! marked as removed, until it is free and somebody needs it.

use std::sync::Arc;

use pointsman_core::ClusterId;
use pointsman_core::boundary::ListenerId;

use crate::plan::{ClusterPlan, ListenerPlan, Plan, PluginId, PluginPlan, PolicyPlan};
use crate::world::Place;

/// A plan whose places are those of a running balancer.
pub(super) struct Placed {
    /// The plan.
    pub(super) plan: Plan,
    /// Listeners that need sockets.
    pub(super) opened: Vec<ListenerId>,
    /// Clusters that have no policy yet.
    pub(super) founded: Vec<ClusterId>,
}

/// Places everything; `listeners` and `clusters` say what may be done with the places there are.
pub(super) fn keep(old: &Plan, new: Plan, places: &(Vec<Place>, Vec<Place>)) -> Placed {
    let (listeners, clusters) = places;
    let Plan { plugins, clusters: new_clusters, listeners: new_listeners, .. } = new;
    let plugin_places = plugin_places(old, &plugins);
    let new_clusters = new_clusters.into_iter().map(|cluster| match cluster.policy {
        PolicyPlan::Plugin(PluginId(place)) => {
            ClusterPlan { policy: PolicyPlan::Plugin(PluginId(plugin_places[place])), ..cluster }
        }
        PolicyPlan::Native(_) => cluster,
    });
    let new_clusters: Vec<_> = new_clusters.collect();
    let cluster_places = cluster_places(old, &new_clusters, clusters);
    let new_listeners = new_listeners.into_iter().map(|listener| ListenerPlan {
        cluster: ClusterId(cluster_places[listener.cluster.index()] as u16),
        ..listener
    });
    let new_listeners: Vec<_> = new_listeners.collect();
    let listener_places = listener_places(old, &new_listeners, listeners);
    let is_free = |places: &[Place], place: usize| {
        places.get(place).is_none_or(|state| *state == Place::Free)
    };
    let opened = listener_places.iter().filter(|place| is_free(listeners, **place));
    let founded = cluster_places.iter().filter(|place| is_free(clusters, **place));
    Placed {
        opened: opened.map(|place| ListenerId(*place as u16)).collect(),
        founded: founded.map(|place| ClusterId(*place as u16)).collect(),
        plan: Plan {
            plugins: put(&old.plugins, plugins, &plugin_places, |it| it.removed = true),
            clusters: put(&old.clusters, keep_checks(old, new_clusters), &cluster_places, |it| {
                it.removed = true;
            }),
            listeners: put(&old.listeners, new_listeners, &listener_places, |it| it.removed = true),
            ..new
        },
    }
}

/// Puts everything into its place; what is left of the old is `removed`.
fn put<T: Clone>(old: &[T], new: Vec<T>, places: &[usize], removed: impl Fn(&mut T)) -> Vec<T> {
    let mut all = old.to_vec();
    all.iter_mut().for_each(removed);
    let mut new: Vec<_> = places.iter().copied().zip(new).collect();
    new.sort_by_key(|(place, _)| *place);
    for (place, it) in new {
        match all.get_mut(place) {
            Some(taken) => *taken = it,
            None => all.push(it),
        }
    }
    all
}

/// Checks that are as they were are the same ones: nobody starts them anew.
fn keep_checks(old: &Plan, new: Vec<ClusterPlan>) -> Vec<ClusterPlan> {
    let kept = new.into_iter().map(|mut cluster| {
        let before = old.clusters.iter().find(|before| before.name == cluster.name);
        if let (Some(check), Some(Some(before))) = (&cluster.check, before.map(|it| &it.check))
            && (&check.written, check.proxy) == (&before.written, before.proxy)
        {
            cluster.check = Some(Arc::clone(before));
        }
        cluster
    });
    kept.collect()
}

/// Whether a place is right for somebody.
type Way<'a, T> = dyn Fn(&T, usize) -> bool + 'a;

/// Gives each a place of its own: of those there are, the first that is right in one of these ways, the
/// first ways coming first for all; else a new one.
fn assign<T>(new: &[T], count: usize, ways: &[&Way<'_, T>]) -> Vec<usize> {
    let mut is_taken = vec![false; count];
    let mut places: Vec<Option<usize>> = vec![None; new.len()];
    for way in ways {
        for (place, it) in places.iter_mut().zip(new).filter(|(place, _)| place.is_none()) {
            *place = (0..count).find(|place| !is_taken[*place] && way(it, *place));
            place.iter().for_each(|place| is_taken[*place] = true);
        }
    }
    let mut next = count..;
    places.into_iter().filter_map(|place| place.or_else(|| next.next())).collect()
}

/// A plugin is known by its name. Another may have the place of one that no cluster has had since.
fn plugin_places(old: &Plan, new: &[PluginPlan]) -> Vec<usize> {
    let is_same = |plugin: &PluginPlan, place: usize| old.plugins[place].name == plugin.name;
    let is_free = |_: &PluginPlan, place: usize| {
        let policy = PolicyPlan::Plugin(PluginId(place));
        old.plugins[place].removed && old.clusters.iter().all(|cluster| cluster.policy != policy)
    };
    assign(new, old.plugins.len(), &[&is_same, &is_free])
}

/// A cluster is known by its name, also if it was removed and has flows yet.
fn cluster_places(old: &Plan, new: &[ClusterPlan], places: &[Place]) -> Vec<usize> {
    let is_free = |_: &ClusterPlan, place: usize| places[place] == Place::Free;
    let is_same = |cluster: &ClusterPlan, place: usize| {
        places[place] != Place::Free && old.clusters[place].name == cluster.name
    };
    assign(new, old.clusters.len(), &[&is_same, &is_free])
}

/// A listener is known by its protocol and address, and by its name where the kernel has chosen its
/// port. One that comes goes where another of its name was, if it can, and its counts go on.
fn listener_places(old: &Plan, new: &[ListenerPlan], places: &[Place]) -> Vec<usize> {
    let has_name =
        |listener: &ListenerPlan, place: usize| old.listeners[place].name == listener.name;
    let is_same = |listener: &ListenerPlan, place: usize| {
        let before = &old.listeners[place];
        let may_stay =
            places[place] == Place::Leaving || places[place] == Place::Taken && !before.removed;
        let is_at = (before.protocol, before.address) == (listener.protocol, listener.address);
        may_stay && is_at && (listener.address.port() != 0 || has_name(listener, place))
    };
    let is_free = |_: &ListenerPlan, place: usize| places[place] == Place::Free;
    let is_free_and_its = |listener: &ListenerPlan, place: usize| {
        places[place] == Place::Free && has_name(listener, place)
    };
    assign(new, old.listeners.len(), &[&is_same, &is_free_and_its, &is_free])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{PluginFolders, resolve};

    /// Listeners by name and port, and clusters by name.
    fn plan(listeners: &[(&str, u16, &str)], clusters: &[&str]) -> Plan {
        let listeners = listeners.iter().map(|(name, port, cluster)| {
            format!(
                "[[listeners]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\ncluster = \
                 \"{cluster}\"\n"
            )
        });
        let clusters = clusters.iter().map(|name| {
            format!(
                "[[clusters]]\nname = \"{name}\"\nendpoints = [{{ address = \"10.0.0.1:1\" }}]\n"
            )
        });
        let text: String = listeners.chain(clusters).collect();
        let plan = resolve(&crate::config::read(&text).config, &PluginFolders::default());
        plan.expect("the test's plan")
    }

    fn taken(plan: &Plan) -> (Vec<Place>, Vec<Place>) {
        (vec![Place::Taken; plan.listeners.len()], vec![Place::Taken; plan.clusters.len()])
    }

    /// Names, with a mark for those that were removed.
    fn names(plan: &Plan) -> (Vec<String>, Vec<String>) {
        let shown = |name: &str, removed: bool| format!("{}{name}", if removed { "-" } else { "" });
        let listeners = plan.listeners.iter().map(|it| shown(&it.name, it.removed));
        let clusters = plan.clusters.iter().map(|it| shown(&it.name, it.removed));
        (listeners.collect(), clusters.collect())
    }

    #[test]
    fn who_is_in_both_files_keeps_his_place_whatever_their_order() {
        let old = plan(&[("a", 1, "x"), ("b", 2, "y"), ("c", 3, "z")], &["x", "y", "z"]);
        let new = plan(&[("d", 4, "w"), ("c", 3, "z"), ("a", 1, "z")], &["w", "z", "y"]);
        let Placed { plan, opened, founded } = keep(&old, new, &taken(&old));
        let (listeners, clusters) = names(&plan);
        assert_eq!(listeners, ["a", "-b", "c", "d"]);
        assert_eq!(clusters, ["-x", "y", "z", "w"]);
        assert_eq!((opened, founded), (vec![ListenerId(3)], vec![ClusterId(3)]));
        let of: Vec<_> = plan.listeners.iter().map(|it| it.cluster.0).collect();
        assert_eq!(of, [2, 1, 2, 3], "who is removed goes on with whom he had");
    }

    #[test]
    fn a_place_is_given_to_others_once_it_is_free() {
        let old = plan(&[("a", 1, "x"), ("b", 2, "x")], &["x", "y"]);
        let mut places = taken(&old);
        let next = || plan(&[("b", 2, "x"), ("c", 3, "w")], &["x", "w"]);
        let Placed { plan: left, .. } = keep(&old, next(), &places);
        assert_eq!(names(&left).0, ["-a", "b", "c"]);
        places = taken(&left);
        (places.0[0], places.1[1]) = (Place::Free, Place::Free);
        let last = plan(&[("b", 2, "x"), ("c", 3, "w"), ("d", 4, "v")], &["x", "w", "v"]);
        let Placed { plan, opened, founded } = keep(&left, last, &places);
        assert_eq!(
            names(&plan),
            (
                ["d", "b", "c"].map(str::to_owned).to_vec(),
                ["x", "v", "w"].map(str::to_owned).to_vec(),
            )
        );
        assert_eq!((opened, founded), (vec![ListenerId(0)], vec![ClusterId(1)]));
    }

    #[test]
    fn a_listener_of_another_address_is_another_and_goes_where_one_of_its_name_was() {
        let old = plan(&[("a", 1, "x"), ("b", 2, "x")], &["x"]);
        let Placed { plan: moved, opened, .. } =
            keep(&old, plan(&[("a", 5, "x"), ("b", 2, "x")], &["x"]), &taken(&old));
        assert_eq!(
            (names(&moved).0, opened),
            (["-a", "b", "a"].map(str::to_owned).to_vec(), vec![ListenerId(2)],)
        );
        let mut places = taken(&moved);
        places.0[0] = Place::Free;
        let Placed { plan, opened, .. } =
            keep(&moved, plan(&[("b", 2, "x"), ("c", 9, "x"), ("a", 1, "x")], &["x"]), &places);
        assert_eq!(names(&plan).0, ["a", "b", "-a", "c"]);
        assert_eq!(opened, [ListenerId(3), ListenerId(0)]);
    }

    #[test]
    fn a_listener_of_another_name_at_the_same_address_is_the_same() {
        let old = plan(&[("a", 1, "x"), ("zero", 0, "x"), ("nought", 0, "x")], &["x"]);
        let new = plan(&[("nought", 0, "x"), ("b", 1, "x"), ("zero", 0, "x")], &["x"]);
        let Placed { plan, opened, .. } = keep(&old, new, &taken(&old));
        assert_eq!((names(&plan).0.join(" "), opened), ("b zero nought".to_owned(), Vec::new()));
    }

    #[test]
    fn checks_that_are_written_alike_are_the_same_ones() {
        let text = |interval: u32| {
            format!(
                "[[listeners]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\ncluster = \"x\"\n\
                 [[clusters]]\nname = \"x\"\nhealth = {{ interval_ms = {interval} }}\n\
                 endpoints = [{{ address = \"10.0.0.1:1\" }}]\n"
            )
        };
        let plan = |interval| {
            let plan =
                resolve(&crate::config::read(&text(interval)).config, &PluginFolders::default());
            plan.expect("the test's plan")
        };
        let check = |plan: &Plan| plan.clusters[0].check.clone().expect("a check");
        let old = plan(100);
        let same = keep(&old, plan(100), &taken(&old)).plan;
        let other = keep(&old, plan(200), &taken(&old)).plan;
        assert!(Arc::ptr_eq(&check(&old), &check(&same)));
        assert!(!Arc::ptr_eq(&check(&old), &check(&other)));
    }
}
