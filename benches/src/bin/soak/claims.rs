//! What is claimed of the balancer, and whether it holds.

/// How much of what speaks against a claim is shown.
const SHOWN: usize = 5;

struct Claim {
    phase: &'static str,
    text: &'static str,
    /// What speaks against it.
    against: Vec<String>,
}

/// All claims so far.
#[derive(Default)]
pub(crate) struct Claims {
    phase: &'static str,
    all: Vec<Claim>,
}

impl Claims {
    /// What is claimed from here on is claimed of this phase.
    pub(crate) fn begin(&mut self, phase: &'static str) {
        self.phase = phase;
    }

    /// A claim, and whether it holds; it may be made several times and must hold each time.
    pub(crate) fn note(
        &mut self,
        text: &'static str,
        holds: bool,
        against: impl FnOnce() -> String,
    ) {
        self.note_all(text, (!holds).then(against));
    }

    /// A claim that holds if nothing speaks against it.
    pub(crate) fn note_all(
        &mut self,
        text: &'static str,
        against: impl IntoIterator<Item = String>,
    ) {
        let phase = self.phase;
        let same = |claim: &Claim| (claim.phase, claim.text) == (phase, text);
        let place = self.all.iter().position(same).unwrap_or_else(|| {
            self.all.push(Claim { phase, text, against: Vec::new() });
            self.all.len() - 1
        });
        self.all[place].against.extend(against);
    }

    /// Prints all of them; tells whether all hold.
    pub(crate) fn print(&self) -> bool {
        println!("claims");
        for Claim { phase, text, against } in &self.all {
            let verdict = if against.is_empty() { "holds" } else { "FAILS" };
            println!("  {verdict}  {phase}: {text}");
            for one in against.iter().take(SHOWN) {
                println!("         {one}");
            }
            if against.len() > SHOWN {
                println!("         and {} more", against.len() - SHOWN);
            }
        }
        self.all.iter().all(|claim| claim.against.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_failed_once_does_not_hold_for_being_made_again() {
        let mut claims = Claims::default();
        claims.note("a", true, String::new);
        assert!(claims.print());
        claims.note("a", false, || "once".to_owned());
        claims.note("a", true, String::new);
        assert!(!claims.print());
        assert_eq!(claims.all.len(), 1);
    }
}
