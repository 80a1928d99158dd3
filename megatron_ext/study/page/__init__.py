"""How a study's report is shown: one page, or text. The numbers are those of `study/report`, none is made here."""
