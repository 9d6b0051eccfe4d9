"""The kill test of our row 1 run against other Python stream frameworks, beside ours."""
