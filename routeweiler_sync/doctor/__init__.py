"""Is everything ready to pay? `checkup.examine` looks at software, wallet, ledger, budget and clock, and says what to do."""
