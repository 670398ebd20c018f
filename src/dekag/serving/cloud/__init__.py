"""The cloud: it publishes updates, trains them as jobs and keeps the ledger of what the edges sent."""
