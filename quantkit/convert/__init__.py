"""The pass: plan the outputs, drive readers and writers, journal, finish. Start at `driver.convert`."""
