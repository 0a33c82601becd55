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
            && check.written == before.written
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
